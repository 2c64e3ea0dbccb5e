# SPDX-License-Identifier: MIT
"""Writing the file, and the object that stands for it afterwards."""
import os

PIECE = 1 << 20


class Built:
    """A file that was written, and everything known about it.  What a guest must see: expected(), sha256(),
    extents(), probes(), difference(), first_difference() (see guest.Layer); where(): file offsets of its parts."""

    def __init__(self, path, image, plan):
        self.path = os.fspath(path)
        self.image = image
        self.plan = plan
        self.layer = plan.layer
        self.size = image.size

    def __deepcopy__(self, memo):
        return self     # so that images can be deep-copied without copying their parents

    @property
    def data_write_guid(self):
        """What children must name: the one in the current header."""
        usable = [header for header in self.image.headers if header is not None and header.damage is None]
        current = max(usable, key=lambda header: header.seq, default=None)
        if current is None or current.data_write_guid is None:
            return self.image.data_write_guid
        return current.data_write_guid

    def where(self, reference):
        return self.plan.where(reference)

    def expected(self, offset, length):
        return self.layer.expected(offset, length)

    def sha256(self, **keywords):
        return self.layer.sha256(**keywords)

    def extents(self, offset=0, length=None):
        return self.layer.extents(offset, length)

    def probes(self, span=4096):
        return self.layer.probes(span)

    def chunks(self, offset=0, length=None):
        return self.layer.chunks(offset, length)

    def difference(self, offset, got):
        return self.layer.difference(offset, got)

    def first_difference(self, raw_path):
        return self.layer.first_difference(raw_path)

    def file_bytes(self, offset, length):
        """What was written to the file, without reading it."""
        return self.plan.file.read(offset, length)

    def write_raw(self, path):
        """The guest's disk as a sparse raw file, for tools that compare."""
        with open(path, "wb") as raw:
            raw.truncate(self.size)
            for start, length, store in self.layer.pieces():
                if store is not None:
                    _write_range(raw.fileno(), start, start + length, lambda low, count: store.read(low, count))


def _write_range(descriptor, low, high, read):
    while low < high:
        step = min(PIECE, high - low)
        data = read(low, step)
        done = 0
        while done < step:
            done += os.pwrite(descriptor, data[done:] if done else data, low + done)
        low += step


def write_image(image, path):
    plan = image.plan(path)
    with open(path, "wb") as file:
        file.truncate(plan.file_length)
        for start, end, content, position in plan.file.segments(0, plan.file_length):
            _write_range(file.fileno(), start, end,
                         lambda low, count: content.read(position + low - start, count))
    return Built(path, image, plan)
