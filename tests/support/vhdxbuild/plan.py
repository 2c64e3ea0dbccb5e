# SPDX-License-Identifier: MIT
"""From a description to places and bytes: Plan decides where everything lies and makes the two byte spaces

final   what the structures hold once everything is true (after log replay): the source of log pages
file    what the file gets: final, then stale home pages, the log ring, extra bytes and patches
"""
import ntpath
import os
import random
import struct

from . import encode
from .content import Computed, Fill, Pattern, Store, as_content
from .crc32c import crc32c
from .encode import FULLY_PRESENT, MiB, PAGE, PARTIALLY_PRESENT, TABLE_SIZE, round_up
from .guest import Layer, LayerBlock
from .image import Bitmap, Block, guest_mode, normal_data
from .locator import Locator
from .log import encode_entry, place, put_in_ring, repair_in_ring


class Space:
    """Hands out ascending places that avoid those which were asked for explicitly."""

    def __init__(self):
        self.cursor = MiB
        self.taken = []
        self.end = MiB

    def reserve(self, start, length):
        self.taken.append((start, start + length))
        self.end = max(self.end, start + length)

    def ready(self):
        self.taken.sort(reverse=True)

    def take(self, length):
        start = round_up(self.cursor, MiB)
        while self.taken and self.taken[-1][0] < start + length:
            start = max(start, round_up(self.taken.pop()[1], MiB))
        self.cursor = start + length
        self.end = max(self.end, self.cursor)
        return start


class Plan:
    def __init__(self, image, path=None):
        self.image = image
        self.path = path
        self.geometry = image.geometry
        self.differencing = image.kind == "differencing"
        self.blocks = self._all_blocks()
        self.bitmaps = self._all_bitmaps()
        self.item_places = {}          # name -> (offset in the region, length, index in the table)
        self._item_bytes = self._place_items()
        self._place_everything()
        self.layer = self._guest_layer()
        self.final = Store()
        self._put_structures()
        self.file = self.final.copy()
        self.log_entries = place(image.log, image.seed)
        self._put_log()
        self._put_extras()

    # ---- what there is

    def _all_blocks(self):
        blocks = dict(self.image.blocks)
        if self.image.default_state in (FULLY_PRESENT, PARTIALLY_PRESENT):
            for number in range(self.geometry.blocks):
                if number not in blocks:
                    blocks[number] = Block(self.image.default_state)
        for number in blocks:
            if not 0 <= number < self.geometry.blocks:
                raise ValueError(f"block {number} is not inside the disk of {self.geometry.blocks} blocks "
                                 "(slots behind the last block: bat_raw)")
        return dict(sorted(blocks.items()))

    def _all_bitmaps(self):
        bitmaps = dict(self.image.bitmaps)
        if self.differencing:
            for number, block in self.blocks.items():
                if block.state == PARTIALLY_PRESENT or block.present is not None:
                    bitmaps.setdefault(number // self.geometry.chunk_ratio, Bitmap())
        return bitmaps

    def _item_data(self, item):
        image = self.image
        value = image.declared.get(item.name, item.data)
        widths = {"file_parameters": 4, "virtual_disk_size": 8, "logical_sector_size": 4, "physical_sector_size": 4}
        if isinstance(value, int) and item.name != "file_parameters":
            return value.to_bytes(widths.get(item.name, 8), "little")
        if item.name == "file_parameters" and not isinstance(value, bytes):
            flags = {"dynamic": 0, "fixed": 1, "differencing": 2}[image.kind]
            flags = flags if image.file_flags is None else image.file_flags
            return struct.pack("<II", image.block_size if value is None else value, flags)
        if value is not None:
            return value
        if item.name == "virtual_disk_size":
            return struct.pack("<Q", image.size)
        if item.name == "virtual_disk_id":
            return image.disk_id
        if item.name == "logical_sector_size":
            return struct.pack("<I", image.lss)
        if item.name == "physical_sector_size":
            return struct.pack("<I", image.pss)
        if item.name == "parent_locator":
            locator = image.locator or default_locator(image, self.path)
            return locator.encode() if isinstance(locator, Locator) else locator
        return b""

    def _place_items(self):
        """Items in the order given, packed from 0x10000 around those that have an offset; [(item, offset, data)]."""
        taken = sorted((item.offset, item.offset + len(self._item_data(item))) for item in self.image.items
                       if item.offset is not None)
        result = []
        cursor = TABLE_SIZE
        for item in self.image.items:
            data = self._item_data(item)
            offset = item.offset
            if offset is None and not data:
                offset = 0
            elif offset is None:
                for start, end in taken:
                    if start < cursor + len(data) and cursor < end:
                        cursor = end
                offset = cursor
                cursor += len(data)
            result.append((item, offset, data))
        return result

    # ---- where it lies

    def _place_everything(self):
        image = self.image
        space = Space()
        lengths = self._region_lengths()
        if image.log.length and image.log.at is not None:
            space.reserve(image.log.at, image.log.length)
        for region in image.regions:
            if region.at is not None:
                space.reserve(region.at, lengths[region.name])
        for block in self.blocks.values():
            if isinstance(block.at, int):
                space.reserve(block.at, image.block_size)
        for bitmap in self.bitmaps.values():
            if bitmap.at is not None:
                space.reserve(bitmap.at, MiB)
        space.ready()
        self._place_regions(space, lengths)
        space.cursor += image.payload_gap
        self._place_payload(space)
        self.structures_end = round_up(space.end, MiB)
        self.file_length = (space.end if image.file_length is None else image.file_length) + image.trailing

    def _region_lengths(self):
        items_end = max((offset + len(data) for _, offset, data in self._item_bytes), default=0)
        defaults = {"bat": round_up(self.geometry.entries * 8, MiB), "metadata": max(MiB, round_up(items_end, MiB))}
        return {region.name: defaults.get(region.name, MiB) if region.length is None else region.length
                for region in self.image.regions}

    def _place_regions(self, space, lengths):
        image = self.image
        self.log_at = image.log.at
        self.regions = {region.name: (region.at, lengths[region.name]) for region in image.regions}
        names = list(image.order) + [region.name for region in image.regions if region.name not in image.order]
        for name in names:
            if name == "log":
                if self.log_at is None:
                    self.log_at = space.take(image.log.length) if image.log.length else 0
            elif name in self.regions and self.regions[name][0] is None:
                self.regions[name] = (space.take(round_up(lengths[name], MiB)), lengths[name])

    def _place_payload(self, space):
        self.block_at = {number: block.at for number, block in self.blocks.items() if isinstance(block.at, int)}
        self.bitmap_at = {chunk: bitmap.at for chunk, bitmap in self.bitmaps.items() if bitmap.at is not None}
        for thing in self._payload_sequence():
            if isinstance(thing, int):
                if thing in self.blocks and thing not in self.block_at and self.blocks[thing].needs_space():
                    self.block_at[thing] = space.take(self.image.block_size)
                    space.cursor += self.image.block_gap
            else:
                chunk = int(thing.split(":")[1])
                if chunk in self.bitmaps and chunk not in self.bitmap_at and self.bitmaps[chunk].needs_space():
                    self.bitmap_at[chunk] = space.take(MiB)

    def _payload_sequence(self):
        """Numbers of blocks and "bitmap:C" in the physical order wanted; by default a bitmap block lies in front of
        the first block of its chunk."""
        order = self.image.payload_order
        natural, last_chunk = [], None
        numbers = list(self.blocks)
        for number in numbers:
            if self.blocks[number].data and self.blocks[number].at is None and not self.blocks[number].needs_space():
                raise ValueError(f"block {number} has data but no place in the file: give it an offset (at=)")
        chunk_of = {number: number // self.geometry.chunk_ratio for number in numbers}
        for chunk in sorted(set(self.bitmaps) - set(chunk_of.values())):
            natural.append(f"bitmap:{chunk}")
        for number in numbers:
            if chunk_of[number] != last_chunk:
                last_chunk = chunk_of[number]
                natural.append(f"bitmap:{last_chunk}")
            natural.append(number)
        if order == "ascending":
            return natural
        if order == "descending":
            return natural[::-1]
        if order == "shuffled":
            random.Random(self.image.seed).shuffle(natural)
            return natural
        return list(order) + [thing for thing in natural if thing not in set(order)]

    # ---- what a guest sees

    def _guest_layer(self):
        image = self.image
        parent = image.parent.layer if image.parent is not None else None
        default_mode = guest_mode(Block(image.default_state), self.differencing)
        layer = Layer(image.size, image.block_size, image.lss, parent, default_mode, image.default_state)
        for number, block in self.blocks.items():
            mode = guest_mode(block, self.differencing)
            at = self.block_at.get(number)
            present = tuple(self.present_sectors(number)) if mode == "partial" else ()
            layer.blocks[number] = LayerBlock(mode, block.state, at, present)
            if mode not in ("data", "partial"):
                continue
            base = number * image.block_size
            for offset, length, content, position in normal_data(block.data, number, image.block_size):
                length = min(length, image.size - base - offset)
                layer.data.put(base + offset, length, content, position)
            if at is not None and at + image.block_size > self.file_length:
                layer.data.clear(base + max(0, self.file_length - at), base + image.block_size)
        return layer

    def present_sectors(self, number):
        """Disjoint sorted (first, end) sectors of a block whose bits are set; None if the block leaves its slice
        alone."""
        block = self.blocks[number]
        total = self.geometry.sectors_per_block
        if block.present is None:
            if block.state != PARTIALLY_PRESENT:
                return None
            runs = [(offset // self.image.lss, round_up(offset + length, self.image.lss) // self.image.lss)
                    for offset, length, _, _ in normal_data(block.data, number, self.image.block_size) if length]
        elif block.present == "all":
            inside = min(self.image.block_size, self.image.size - number * self.image.block_size)
            runs = [(0, inside // self.image.lss)]
        elif block.present == "none":
            runs = []
        else:
            runs = [(first, first + count) for first, count in block.present if count]
        merged = []
        for first, end in sorted(runs):
            if end > total:
                raise ValueError(f"block {number} has {total} sectors, not {end}")
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        return merged

    # ---- bytes of the structures

    def _put_structures(self):
        image = self.image
        self.final.put_bytes(0, encode.identifier(image.signature, image.creator))
        for slot, header in zip(encode.HEADER_OFFSETS, image.headers):
            if header is not None:
                self.final.put_bytes(slot, self._header_bytes(header))
        for slot, table in zip(encode.REGION_TABLE_OFFSETS, image.region_tables):
            if table is not None:
                self.final.put_bytes(slot, self._region_table_bytes(table))
        for region in image.regions:
            if region.content is not None:
                self.final.put(self.regions[region.name][0], self.regions[region.name][1], as_content(region.content))
        if self.regions.get("metadata", (None,))[0] is not None:
            self._put_metadata(self.regions["metadata"][0])
        if self.regions.get("bat", (None,))[0] is not None:
            self._put_bat(self.regions["bat"][0])
        for number, at in self.block_at.items():
            self._put_block(number, at)
        for chunk, at in self.bitmap_at.items():
            self._put_bitmap(chunk, at)

    def _header_bytes(self, header):
        image = self.image

        def pick(value, default):
            return default if value is None else value

        body = encode.header(
            signature=header.signature, seq=header.seq,
            file_write_guid=pick(header.file_write_guid, image.file_write_guid),
            data_write_guid=pick(header.data_write_guid, image.data_write_guid),
            log_guid=pick(header.log_guid, image.log.guid), log_version=header.log_version, version=header.version,
            log_length=pick(header.log_length, image.log.length), log_offset=pick(header.log_offset, self.log_at),
            reserved=header.reserved, checksum=header.checksum)
        return damaged(body, header.damage)

    def _region_table_bytes(self, table):
        entries = table.entries
        if entries is None:
            entries = []
            for region in self.image.regions:
                if region.listed:
                    at, length = self.regions[region.name]
                    entries.append(encode.region_entry(
                        region.guid, at if region.declared_at is None else region.declared_at,
                        length if region.declared_length is None else region.declared_length, region.required))
        body = encode.region_table(entries, count=table.count, signature=table.signature, reserved=table.reserved,
                                   checksum=table.checksum, behind=table.behind)
        return damaged(body, table.damage)

    def _put_metadata(self, at):
        image = self.image
        by_name = {}
        for item, offset, data in self._item_bytes:
            by_name.setdefault(item.name, []).append((item, offset, data))
            if data:
                self.final.put_bytes(at + offset, data)
        order = self._item_bytes
        if image.table_order is not None:
            order = [by_name[name].pop(0) for name in image.table_order]
        entries = []
        for item, offset, data in order:
            self.item_places.setdefault(item.name, (offset, len(data), len(entries)))
            entries.append(encode.metadata_entry(
                item.guid, offset if item.declared_offset is None else item.declared_offset,
                len(data) if item.declared_length is None else item.declared_length, item.flags, item.reserved))
        behind = (entries[-1] if image.stale_item_entry and entries else b"") + image.metadata_behind
        self.final.put_bytes(at, encode.metadata_table(entries, count=image.metadata_count,
                                                       signature=image.metadata_signature, behind=behind))

    def _put_bat(self, at):
        image, geometry = self.image, self.geometry
        room = self.regions["bat"][1] // 8
        entries = {}
        for number, block in self.blocks.items():
            place_ = self.block_at.get(number, 0)
            raw = block.raw if block.raw is not None else encode.bat_entry(block.state, place_)
            entries[geometry.payload_index(number)] = raw
        for chunk, bitmap in self.bitmaps.items():
            place_ = self.bitmap_at.get(chunk, 0)
            raw = bitmap.raw if bitmap.raw is not None else encode.bat_entry(bitmap.state, place_)
            entries[geometry.bitmap_index(chunk)] = raw
        entries.update(image.bat_raw)
        if image.default_state:
            self.final.put(at, min(geometry.entries, room) * 8, Computed(self._default_bat))
        pages = {}
        for index, raw in entries.items():
            if index >= room and index not in image.bat_raw:
                continue
            number, offset = divmod(index * 8, PAGE)
            if number not in pages:
                pages[number] = bytearray(self.final.read(at + number * PAGE, PAGE))
            struct.pack_into("<Q", pages[number], offset, raw)
        for number, page in sorted(pages.items()):
            self.final.put_bytes(at + number * PAGE, page)

    def _default_bat(self, position, length):
        """BAT bytes in which every payload entry has the default state and bitmap entries are 0."""
        state = struct.pack("<Q", self.image.default_state)
        period = self.geometry.chunk_ratio + 1
        first, end = position // 8, -(-(position + length) // 8)
        data = bytearray(state * (end - first))
        for index in range(first + (self.geometry.chunk_ratio - first) % period, end, period):
            data[(index - first) * 8:(index - first) * 8 + 8] = bytes(8)
        return bytes(data[position - first * 8:position - first * 8 + length])

    def _put_block(self, number, at):
        block = self.blocks[number]
        size = self.image.block_size
        if block.junk is not None:
            content = as_content(block.junk)
            self.final.put(at, size, content, content.origin(number * size))
            mode = guest_mode(block, self.differencing)
            if mode == "data":
                self.final.clear(at, at + min(size, self.image.size - number * size))
            elif mode == "partial":
                for first, end in self.present_sectors(number):
                    self.final.clear(at + first * self.image.lss, at + end * self.image.lss)
        for offset, length, content, position in normal_data(block.data, number, size):
            self.final.put(at + offset, length, content, position)

    def _put_bitmap(self, chunk, at):
        """Slices of blocks in the chunk; the rest has the bitmap's fill value."""
        fill = self.bitmaps[chunk].fill
        if fill:
            self.final.put(at, MiB, Fill(fill))
        ratio, sectors = self.geometry.chunk_ratio, self.geometry.sectors_per_block
        for number in range(chunk * ratio, min((chunk + 1) * ratio, self.geometry.blocks)):
            if number not in self.blocks:
                continue
            runs = self.present_sectors(number)
            if runs is None:
                continue
            bits = 0
            for first, end in runs:
                bits |= ((1 << (end - first)) - 1) << first
            self.final.put_bytes(at + number % ratio * sectors // 8, bits.to_bytes(sectors // 8, "little"))

    # ---- what only the file has

    def _put_log(self):
        image = self.image
        for reference, what in image.home:
            self._put_file(reference, what)
        if not image.log.length:
            return
        if image.log.junk is not None:
            self.file.put(self.log_at, image.log.length, as_content(image.log.junk))
        for item in self.log_entries:
            put_in_ring(self.file, self.log_at, image.log.length, item, encode_entry(item, self))

    def _put_extras(self):
        for reference, what in self.image.extra:
            self._put_file(reference, what)
        for patch in self.image.patches:
            at = self.where(patch.at)
            if at + len(patch.data) > self.file_length:
                raise ValueError(f"patch at {at:#x} is beyond the file's length {self.file_length:#x}")
            self.file.put_bytes(at, patch.data)
            if patch.repair:
                self._repair_checksum(at)

    def _put_file(self, reference, what):
        length, content = what if isinstance(what, tuple) else (len(what), what)
        self.file.put(self.where(reference), length, as_content(content))

    def _repair_checksum(self, at):
        for slot, length in [(slot, encode.HEADER_SIZE) for slot in encode.HEADER_OFFSETS] + \
                            [(slot, TABLE_SIZE) for slot in encode.REGION_TABLE_OFFSETS]:
            if slot <= at < slot + length:
                body = bytearray(self.file.read(slot, length))
                body[4:8] = bytes(4)
                self.file.put_bytes(slot + 4, struct.pack("<I", crc32c(body)))
                return
        length = self.image.log.length
        hits = [item for item in self.log_entries
                if length and self.log_at <= at < self.log_at + length
                and (at - self.log_at - item.at) % length < item.length]
        if not hits:
            raise ValueError(f"nothing with a checksum at {at:#x}")
        repair_in_ring(self.file, self.log_at, length, hits[-1])

    # ---- names

    def where(self, reference):
        """File offset of a reference: a number, a name, or (name, distance).

        Names: identifier, header1, header2, region1, region2, log, logentry:N, region:NAME, bat, metadata,
        bat:INDEX (a BAT entry), entry:BLOCK (the BAT entry of a payload block), sbentry:CHUNK (of a bitmap),
        block:N, bitmap:C (their places), item:NAME (the item's bytes), itementry:NAME (its metadata table entry).
        """
        if isinstance(reference, int):
            return reference
        if isinstance(reference, tuple):
            return self.where(reference[0]) + reference[1]
        fixed = {"identifier": 0, "header1": 0x10000, "header2": 0x20000, "region1": 0x30000, "region2": 0x40000,
                 "log": self.log_at}
        if reference in fixed:
            return fixed[reference]
        name, _, which = reference.partition(":")
        if not which:
            return self.regions[name][0]
        if name == "region":
            return self.regions[which][0]
        if name in ("item", "itementry"):
            offset, _, index = self.item_places[which]
            return self.regions["metadata"][0] + (offset if name == "item" else 32 + 32 * index)
        number = int(which, 0)
        if name == "logentry":
            return self.log_at + self.log_entries[number].at
        if name == "block":
            return self.block_at[number]
        if name == "bitmap":
            return self.bitmap_at[number]
        index = {"bat": lambda: number, "entry": lambda: self.geometry.payload_index(number),
                 "sbentry": lambda: self.geometry.bitmap_index(number)}[name]()
        return self.regions["bat"][0] + 8 * index

    def pages(self, start, length):
        """File offsets of 4 KiB pages in a range that hold anything but zeros."""
        result = []
        for low, high, _, _ in self.final.segments(start, start + length):
            for page in range(low // PAGE * PAGE, high, PAGE):
                if (not result or page > result[-1]) and any(self.final.read(page, PAGE)):
                    result.append(page)
        return result


def default_locator(image, path):
    """A locator in the manner of Windows, for the paths that parent and child have."""
    if image.parent is None:
        raise ValueError("a differencing image needs a parent or a locator")
    parent_path = os.path.abspath(image.parent.path)
    folder = os.path.dirname(os.path.abspath(path)) if path is not None else os.path.dirname(parent_path)
    relative = os.path.relpath(parent_path, folder).replace("/", "\\")
    if not relative.startswith(".."):
        relative = ".\\" + relative
    name = ntpath.basename(relative)
    return Locator.windows(image.parent.data_write_guid, "C:\\images\\" + name, relative,
                           "\\\\?\\Volume{5e0bd954-71b2-4bff-a928-082af7ab0f8f}\\images\\" + name)


def damaged(body, how):
    if how is None:
        return body
    body = bytearray(body)
    if how == "crc":
        body[4] ^= 0xFF
    elif how == "signature":
        body[0] ^= 0xFF
    elif how == "torn":
        half = len(body) // 2
        body[half:] = Pattern(0xBAD).read(0, len(body) - half)
    elif how == "zero":
        body = bytes(len(body))
    elif how == "junk":
        body = Pattern(0xBAD).read(0, len(body))
    else:
        raise ValueError(f"unknown kind of damage: {how}")
    return bytes(body)
