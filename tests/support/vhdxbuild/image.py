# SPDX-License-Identifier: MIT
"""The description of an image: plain data that test authors fill in, change and build()."""
from dataclasses import dataclass, field
from typing import Any

from . import encode
from .content import as_content
from .encode import FULLY_PRESENT, MiB, NOT_PRESENT, PARTIALLY_PRESENT, Geometry, seeded_guid
from .locator import Locator
from .log import Log

AUTO = "auto"


@dataclass
class Header:
    """One header slot.  None takes the image's value.

    damage: None, "crc", "signature", "torn" (second half is junk), "zero" (nothing there), "junk".
    """
    seq: int
    file_write_guid: bytes | None = None
    data_write_guid: bytes | None = None
    log_guid: bytes | None = None
    log_version: int = 0
    version: int = 1
    log_length: int | None = None
    log_offset: int | None = None
    reserved: bytes = b""                 # from byte 80 on, under the checksum
    signature: bytes = b"head"
    checksum: int | None = None
    damage: str | None = None


@dataclass
class Region:
    """A region and its table entry.  known names ("bat", "metadata") need no guid.

    at None: placed by order.  declared_at/declared_length: what the table says, if not the truth.
    listed=False: the region exists but the table does not name it.  content: bytes of an unknown region.
    """
    name: str
    guid: bytes | None = None
    at: int | None = None
    length: int | None = None
    required: int = 1                     # the whole 32-bit field
    declared_at: int | None = None
    declared_length: int | None = None
    listed: bool = True
    content: Any = None

    def __post_init__(self):
        if self.guid is None:
            self.guid = encode.REGION_GUIDS.get(self.name) or seeded_guid(0, "region " + self.name)


@dataclass
class RegionTable:
    """One copy of the region table.  entries: None for the image's regions, or a list of 32-byte strings.
    damage as in Header.  behind: bytes after the last entry."""
    entries: list | None = None
    count: int | None = None
    reserved: int = 0
    signature: bytes = b"regi"
    checksum: int | None = None
    damage: str | None = None
    behind: bytes = b""


@dataclass
class Item:
    """A metadata item.  Known names ("file_parameters", "virtual_disk_size", "virtual_disk_id",
    "logical_sector_size", "physical_sector_size", "parent_locator", ...) have GUID and flags, and those five or six
    have data from the image.  offset None: packed behind the item before it.  declared_*: lies of the table."""
    name: str
    data: bytes | None = None
    guid: bytes | None = None
    flags: int | None = None
    offset: int | None = None
    declared_offset: int | None = None
    declared_length: int | None = None
    reserved: int = 0

    def __post_init__(self):
        if self.guid is None:
            self.guid = encode.ITEM_GUIDS.get(self.name) or seeded_guid(0, "item " + self.name)
        if self.flags is None:
            self.flags = encode.ITEM_FLAGS.get(self.name, encode.IS_USER)


@dataclass
class Block:
    """One payload block.

    state    one of the eight; None: the low bits of raw if given, else FULLY_PRESENT
    at       file offset; None: placed automatically for states 6 and 7, none for the others; AUTO: placed
             automatically in any state (a soft anchor in states 1 and 3)
    raw      the whole 64-bit BAT entry, instead of the one made of state and at
    data     [(offset in the block, length, content)], or one content for the whole block.  It is written to the
             block's place in the file even if the state hides it.
    present  bits in the sector bitmap, [(first sector, count)], "all" or "none".  None: in state 7 the sectors that
             data touches, otherwise left alone.  In other states than 7 these are stale bits.
    junk     content for what must not be seen: sectors that are not present, anchored space, bytes beyond the
             disk's end
    reads    "data", "zero", "parent" or "partial", if the guest's view is not the one of the state
    """
    state: int | None = None
    at: Any = None
    raw: int | None = None
    data: Any = ()
    present: Any = None
    junk: Any = None
    reads: str | None = None

    def __post_init__(self):
        if self.state is None:
            self.state = FULLY_PRESENT if self.raw is None else self.raw & 7

    def needs_space(self):
        return self.at == AUTO or (self.at is None and self.raw is None and self.state in (6, 7))


@dataclass
class Bitmap:
    """The sector bitmap block of a chunk.  fill: byte value for slices of blocks that say nothing about theirs.
    allocate: whether it has space in the file; None: if its state is SB_PRESENT and neither at nor raw is given."""
    state: int = encode.SB_PRESENT
    at: int | None = None
    raw: int | None = None
    fill: int = 0
    allocate: bool | None = None

    def needs_space(self):
        if self.allocate is not None:
            return self.allocate
        return self.at is None and self.raw is None and self.state == encode.SB_PRESENT


@dataclass
class Patch:
    """Bytes that replace what the finished file has at a reference (Plan.where).  repair: recompute the checksum of
    the header, region table or log entry that they hit."""
    at: Any
    data: bytes
    repair: bool = False


_DEFAULT_ITEMS = ("file_parameters", "virtual_disk_size", "logical_sector_size", "physical_sector_size",
                  "virtual_disk_id")


@dataclass
class Image:
    """Everything about one file.  The defaults make a clean dynamic image in the layout of Windows (1.4) with 2 MiB
    blocks; a parent (what build() returned) makes it a differencing one."""
    size: int
    block_size: int = 2 * MiB
    kind: str | None = None               # "dynamic", "fixed", "differencing"
    lss: int = 512
    pss: int = 4096
    seed: int = 0
    creator: Any = "Microsoft Windows 10.0.20348.0"
    signature: bytes = b"vhdxfile"
    disk_id: bytes | None = None
    file_write_guid: bytes | None = None
    data_write_guid: bytes | None = None
    parent: Any = None                    # Built
    locator: Locator | None = None        # None: Windows style, from the paths of parent and child
    file_flags: int | None = None         # flags of File Parameters
    declared: dict = field(default_factory=dict)  # item name -> int or bytes: metadata values that lie

    default_state: int | None = None      # of blocks not named in blocks; None: 6 for fixed, else 0
    blocks: dict = field(default_factory=dict)     # block number -> Block
    bitmaps: dict = field(default_factory=dict)    # chunk number -> Bitmap
    bat_raw: dict = field(default_factory=dict)    # BAT index -> entry, over everything else

    headers: list = field(default_factory=lambda: [Header(8), Header(9)])
    region_tables: list = field(default_factory=lambda: [RegionTable(), RegionTable()])
    regions: list = field(default_factory=lambda: [Region("bat"), Region("metadata")])  # in table order
    items: list = field(default_factory=lambda: [Item(name) for name in _DEFAULT_ITEMS])
    table_order: list | None = None       # item names in the order of the metadata table
    metadata_count: int | None = None     # EntryCount that lies
    metadata_signature: bytes = b"metadata"
    metadata_behind: bytes = b""          # bytes behind the last table entry
    stale_item_entry: bool = True         # repeat the last table entry behind the table, as Windows leaves it
    log: Log = field(default_factory=Log)

    order: list = field(default_factory=lambda: ["log", "metadata", "bat"])  # other regions follow
    payload_order: Any = "ascending"      # or "descending", "shuffled", or a list of numbers and "bitmap:C"
    payload_gap: int = 0                  # free space before the first payload block
    block_gap: int = 0                    # free space between payload blocks
    file_length: int | None = None        # None: the end of the last structure
    trailing: int = 0                     # bytes behind that

    # [(reference, bytes or (length, content))].  home: what the file holds instead of the truth, for log replay to
    # mend (before the log is written); extra: anything else (after it)
    home: list = field(default_factory=list)
    extra: list = field(default_factory=list)
    patches: list = field(default_factory=list)    # Patch: the very last step

    def __post_init__(self):
        if self.kind is None:
            self.kind = "dynamic" if self.parent is None else "differencing"
        if self.default_state is None:
            self.default_state = FULLY_PRESENT if self.kind == "fixed" else NOT_PRESENT
        if self.disk_id is None and self.parent is not None:
            self.disk_id = self.parent.image.disk_id
        above = "" if self.parent is None else " above " + self.parent.data_write_guid.hex()
        for name in ("disk_id", "file_write_guid", "data_write_guid"):
            if getattr(self, name) is None:
                setattr(self, name, seeded_guid(self.seed, name + above))
        if self.kind == "differencing":
            self.items.append(Item("parent_locator"))

    # ---- finding parts

    @property
    def geometry(self):
        return Geometry(self.size, self.block_size, self.lss, self.kind == "differencing")

    def item(self, name):
        return next(item for item in self.items if item.name == name)

    def region(self, name):
        return next(region for region in self.regions if region.name == name)

    def drop_item(self, name):
        self.items.remove(self.item(name))

    # ---- filling the disk

    def write(self, offset, length, content):
        """Guest data: blocks get allocated as a writer would do it.  In a differencing image a block of which only a
        part is written becomes PARTIALLY_PRESENT, with the bits of the sectors that were touched."""
        content = as_content(content)
        position = content.origin(offset)
        end = offset + length
        if offset < 0 or end > self.size:
            raise ValueError(f"range {offset:#x}+{length:#x} is not inside the disk of {self.size:#x} bytes")
        while offset < end:
            number, start = divmod(offset, self.block_size)
            step = min(end - offset, self.block_size - start)
            block = self._block_for_write(number, start, step)
            block.data.append((start, step, content, position))
            offset += step
            position += step
        return self

    def _block_for_write(self, number, start, step):
        inside = min(self.block_size, self.size - number * self.block_size)
        whole = start == 0 and step == inside
        block = self.blocks.get(number)
        if block is None:
            part_of_parent = self.kind == "differencing" and self.default_state == NOT_PRESENT and not whole
            block = self.blocks[number] = Block(PARTIALLY_PRESENT if part_of_parent else FULLY_PRESENT)
        elif block.state not in (FULLY_PRESENT, PARTIALLY_PRESENT):
            raise ValueError(f"block {number} has state {block.state}: give it data when it is made")
        block.data = normal_data(block.data, number, self.block_size)
        return block

    def set_block(self, number, *arguments, **keywords):
        """blocks[number] = Block(...)."""
        self.blocks[number] = Block(*arguments, **keywords)
        return self

    # ---- making the file

    def plan(self, path=None):
        """The layout, without a file; path matters only for the default parent locator."""
        from .plan import Plan
        return Plan(self, path)

    def build(self, path):
        """Writes the file (sparse) and returns a Built."""
        from .built import write_image
        return write_image(self, path)


def normal_data(data, number, block_size):
    """Block.data as a list of (offset in the block, length, content, position in the content)."""
    if isinstance(data, (list, tuple)):
        result = []
        for run in data:
            if len(run) == 2:   # (offset, bytes)
                run = (run[0], len(run[1]), run[1])
            if len(run) == 3:
                content = as_content(run[2])
                run = (run[0], run[1], content, content.origin(number * block_size + run[0]))
            result.append(tuple(run))
        for offset, length, _, _ in result:
            if offset < 0 or offset + length > block_size:
                raise ValueError(f"data {offset:#x}+{length:#x} is not inside block {number} of {block_size:#x} bytes")
        return result
    content = as_content(data)
    return [(0, block_size, content, content.origin(number * block_size))]


def guest_mode(block, differencing):
    """How a guest sees a block (format section 5.4)."""
    if block.reads is not None:
        return block.reads
    if block.state == FULLY_PRESENT:
        return "data"
    if block.state == PARTIALLY_PRESENT:
        return "partial" if differencing else "data"
    if block.state == NOT_PRESENT:
        return "parent" if differencing else "zero"
    return "zero"
