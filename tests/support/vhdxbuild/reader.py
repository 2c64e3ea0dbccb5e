# SPDX-License-Identifier: MIT
"""A slow and simple reader, to check the builder by a second look at the bytes (QEMU reads neither differencing
images nor 4096-byte sectors) and to look into files that others wrote.

It shares the checksum function with the builder and nothing else.  It is strict: what it does not expect raises
Unreadable.  It finds the log's sequence by the scan that the specification describes (format section 4.6.1).
"""
import os
import struct
import uuid

from .crc32c import crc32c

MIB = 1 << 20
BAT_GUID = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_GUID = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
FILE_PARAMETERS = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
LOGICAL_SECTOR = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
LOCATOR = uuid.UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")


class Unreadable(Exception):
    """The file breaks a rule; the message says which."""


def _guid(data):
    return uuid.UUID(bytes_le=bytes(data))


def _demand(condition, message):
    if not condition:
        raise Unreadable(message)


class Reader:
    """Opens a file; parent is the Reader of its parent.  read(offset, length) gives guest bytes."""

    def __init__(self, path, parent=None):
        self.file = open(path, "rb", buffering=0)
        self.length = os.fstat(self.file.fileno()).st_size
        self.parent = parent
        self.overlay = {}
        self.zeroed = []
        self.replayed = []
        _demand(self._raw(0, 8) == b"vhdxfile", "not a VHDX file")
        self._read_headers()
        if self.log_guid != bytes(16):
            self._replay()
        self._read_regions()
        self._read_metadata()
        _demand((self.file_flags & 2 != 0) == (parent is not None), "parent given for a file without one, or missing")

    def close(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    # ---- bytes of the file, before and after replay

    def _raw(self, offset, length):
        return os.pread(self.file.fileno(), length, offset).ljust(length, b"\0")

    def _page(self, number):
        """A 4 KiB page as replay leaves it: the last change to it in log order wins."""
        changes = list(self.overlay.get(number, []))
        changes += [(order, bytes(4096)) for order, first, end in self.zeroed if first <= number < end]
        if changes:
            return max(changes, key=lambda change: change[0])[1]
        return self._raw(number * 4096, 4096)

    def _bytes(self, offset, length):
        if not self.overlay and not self.zeroed:
            return self._raw(offset, length)
        first, end = offset // 4096, -(-(offset + length) // 4096)
        data = b"".join(self._page(number) for number in range(first, end))
        return data[offset - first * 4096:offset - first * 4096 + length]

    # ---- headers

    def _read_headers(self):
        valid = []
        for slot in (0x10000, 0x20000):
            body = self._raw(slot, 4096)
            stored, = struct.unpack_from("<I", body, 4)
            if body[:4] == b"head" and crc32c(body[:4] + bytes(4) + body[8:]) == stored:
                valid.append(body)
        _demand(valid, "no valid header")
        sequence = [struct.unpack_from("<Q", body, 8)[0] for body in valid]
        _demand(len(valid) == 1 or sequence[0] != sequence[1] or valid[0] == valid[1],
                "two different headers with the same sequence number")
        current = valid[sequence.index(max(sequence))]
        self.data_write_guid = current[32:48]
        self.log_guid = current[48:64]
        log_version, version, self.log_length, self.log_offset = struct.unpack_from("<HHIQ", current, 64)
        _demand(version == 1, f"version {version}")
        _demand(log_version == 0 or self.log_guid == bytes(16), f"log version {log_version}")

    # ---- log

    def _ring(self, at, length):
        at %= self.log_length
        first = min(length, self.log_length - at)
        return self._raw(self.log_offset + at, first) + self._raw(self.log_offset, length - first)

    def _entry(self, at):
        """The valid entry at a log offset as a dict, or None."""
        head = self._ring(at, 64)
        signature, checksum, length, tail, seq, count = struct.unpack_from("<4sIIIQI", head)
        if signature != b"loge" or head[32:48] != self.log_guid:
            return None
        if length % 4096 or not 4096 <= length <= self.log_length or tail % 4096 or tail >= self.log_length:
            return None
        if seq == 0 or 64 + 32 * count > length:
            return None
        body = self._ring(at, length)
        if crc32c(body[:4] + bytes(4) + body[8:]) != checksum:
            return None
        sector = -(-(64 + 32 * count) // 4096)
        changes = []
        for number in range(count):
            signature, field, middle, offset, own = struct.unpack_from("<4s4s8sQQ", body, 64 + 32 * number)
            if own != seq:
                return None
            if signature == b"zero":
                changes.append(("zero", offset, int.from_bytes(middle, "little")))
            elif signature == b"desc":
                data = body[sector * 4096:sector * 4096 + 4096]
                sector += 1
                if data[:4] != b"data" or data[4:8] + data[-4:] != struct.pack("<II", seq >> 32, seq & 0xFFFFFFFF):
                    return None
                changes.append(("data", offset, middle + data[8:-4] + field))
            else:
                return None
        if sector * 4096 != length:
            return None
        flushed, last = struct.unpack_from("<QQ", head, 48)
        return {"at": at, "length": length, "tail": tail, "seq": seq, "changes": changes, "flushed": flushed,
                "last": last}

    def _run(self, start):
        run, at, total = [], start, 0
        while True:
            entry = self._entry(at)
            if entry is None or (run and entry["seq"] != run[-1]["seq"] + 1):
                return run
            if total + entry["length"] > self.log_length:
                return run
            run.append(entry)
            total += entry["length"]
            at = (at + entry["length"]) % self.log_length

    def _active_sequence(self):
        best, old = [], 0
        while True:
            run = self._run(old)
            complete = run and run[-1]["tail"] in [entry["at"] for entry in run]
            if complete and (not best or run[-1]["seq"] > best[-1]["seq"]):
                best = run
            after = (old + (sum(entry["length"] for entry in run) if complete else 4096)) % self.log_length
            if after <= old:
                break
            old = after
        _demand(best, "the log has no active sequence")
        start = [entry["at"] for entry in best].index(best[-1]["tail"])
        return best[start:]

    def _replay(self):
        _demand(self.log_length and self.log_offset + self.log_length <= self.length, "log outside of the file")
        active = self._active_sequence()
        _demand(active[-1]["flushed"] <= self.length, "file shorter than FlushedFileOffset")
        bound = max([self.length] + [entry["last"] for entry in active])
        order = 0
        for entry in active:
            for kind, offset, what in entry["changes"]:
                length = what if kind == "zero" else 4096
                _demand(offset % 4096 == 0 and length % 4096 == 0, "log descriptor not aligned")
                _demand(offset >= 0x30000 and offset + length <= bound, f"log descriptor for {offset:#x}")
                _demand(offset + length <= self.log_offset or offset >= self.log_offset + self.log_length,
                        "log descriptor for the log itself")
                order += 1
                if kind == "zero":
                    self.zeroed.append((order, offset // 4096, (offset + length) // 4096))
                else:
                    self.overlay.setdefault(offset // 4096, []).append((order, what))
        self.replayed = [entry["at"] for entry in active]
        self.length = max(self.length, active[-1]["last"])

    # ---- regions and metadata

    def _read_regions(self):
        for slot in (0x30000, 0x40000):
            body = self._bytes(slot, 65536)
            stored, count = struct.unpack_from("<II", body, 4)
            if body[:4] == b"regi" and count <= 2047 and crc32c(body[:4] + bytes(4) + body[8:]) == stored:
                break
        else:
            raise Unreadable("no valid region table")
        self.regions = {}
        for number in range(count):
            guid, offset, length, required = struct.unpack_from("<16sQII", body, 16 + 32 * number)
            guid = _guid(guid)
            _demand(guid not in self.regions, f"region {guid} twice")
            _demand(guid in (BAT_GUID, METADATA_GUID) or not required & 1, f"unknown required region {guid}")
            _demand(offset % MIB == 0 and offset >= MIB and length and length % MIB == 0, f"region {guid} misplaced")
            _demand(offset + length <= self.length, f"region {guid} beyond the end of the file")
            self.regions[guid] = (offset, length)
        _demand(BAT_GUID in self.regions and METADATA_GUID in self.regions, "BAT or metadata region missing")

    def _read_metadata(self):
        start, length = self.regions[METADATA_GUID]
        table = self._bytes(start, 65536)
        count, = struct.unpack_from("<H", table, 10)
        _demand(table[:8] == b"metadata" and count <= 2047, "no metadata table")
        self.items = {}
        for number in range(count):
            guid, offset, size, flags = struct.unpack_from("<16sIII", table, 32 + 32 * number)
            _demand(size <= MIB and offset + size <= length and (offset >= 65536 or size == 0), "item misplaced")
            self.items[(_guid(guid), flags & 1)] = self._bytes(start + offset, size)
        self.block_size, self.file_flags = struct.unpack("<II", self._item(FILE_PARAMETERS))
        self.size, = struct.unpack("<Q", self._item(DISK_SIZE))
        self.lss, = struct.unpack("<I", self._item(LOGICAL_SECTOR))
        _demand(self.block_size in [MIB << shift for shift in range(9)], f"block size {self.block_size}")
        _demand(self.lss in (512, 4096) and self.size and self.size % self.lss == 0, "sector or disk size")
        self.ratio = (1 << 23) * self.lss // self.block_size

    def _item(self, guid):
        _demand((guid, 0) in self.items, f"metadata item {guid} missing")
        return self.items[(guid, 0)]

    def locator(self):
        """The parent locator's pairs as a dict."""
        item = self._item(LOCATOR)
        count, = struct.unpack_from("<H", item, 18)
        pairs = {}
        for number in range(count):
            key, value, key_length, value_length = struct.unpack_from("<IIHH", item, 20 + 12 * number)
            pairs[item[key:key + key_length].decode("utf-16-le")] = item[value:value + value_length].decode("utf-16-le")
        return pairs

    # ---- guest data

    def bat(self, index):
        start, length = self.regions[BAT_GUID]
        _demand(index * 8 + 8 <= length, f"BAT region too small for entry {index}")
        entry, = struct.unpack("<Q", self._bytes(start + 8 * index, 8))
        _demand(entry & 0xFFFF8 == 0, f"BAT entry {index} is {entry:#x}")
        return entry & 7, entry >> 20 << 20

    def read(self, offset, length):
        _demand(offset + length <= self.size, "beyond the disk's end")
        result = []
        while length:
            block, inside = divmod(offset, self.block_size)
            step = min(length, self.block_size - inside)
            result.append(self._read_block(block, inside, step))
            offset += step
            length -= step
        return b"".join(result)

    def _read_block(self, block, inside, length):
        state, place = self.bat(block + block // self.ratio)
        guest = block * self.block_size + inside
        if state == 6:
            _demand(place, f"block {block} lies at offset 0")
            return self._bytes(place + inside, length)
        if state == 7:
            return self._read_partial(block, place, inside, length)
        _demand(state in (0, 1, 2, 3), f"block {block} has state {state}")
        if state == 0 and self.parent is not None:
            return self._read_parent(guest, length)
        return bytes(length)

    def _read_parent(self, guest, length):
        inside = max(0, min(length, self.parent.size - guest))
        return (self.parent.read(guest, inside) if inside else b"").ljust(length, b"\0")

    def _read_partial(self, block, place, inside, length):
        _demand(self.parent is not None, "PARTIALLY_PRESENT without a parent")
        chunk = block // self.ratio
        state, bitmap = self.bat(chunk * (self.ratio + 1) + self.ratio)
        _demand(state == 6, f"chunk {chunk} has no sector bitmap")
        own = self._bytes(place + inside, length)
        theirs = self._read_parent(block * self.block_size + inside, length)
        guest = block * self.block_size + inside
        bits = self._bytes(bitmap, MIB)
        result = bytearray(theirs)
        position = guest
        while position < guest + length:
            sector = position // self.lss
            end = min((sector + 1) * self.lss, guest + length)
            bit = sector % (1 << 23)
            if bits[bit // 8] >> bit % 8 & 1:
                result[position - guest:end - guest] = own[position - guest:end - guest]
            position = end
        return bytes(result)
