# SPDX-License-Identifier: MIT
"""Constants of the format and the byte layout of its fixed structures (format sections 1 to 5 and 7).

Everything here is a pure function from values to bytes and accepts illegal values: what is legal is the
business of the reader under test.
"""
import hashlib
import struct
import uuid

from .crc32c import with_checksum

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

HEADER_OFFSETS = (0x10000, 0x20000)
REGION_TABLE_OFFSETS = (0x30000, 0x40000)
HEADER_SIZE = 4096
TABLE_SIZE = 65536
PAGE = 4096

# Payload block states (format section 5.4); SB_PRESENT is the one of sector bitmap blocks (5.5).
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 1, 2, 3, 6, 7
SB_NOT_PRESENT, SB_PRESENT = 0, 6

# Metadata item flags (format section 7.2).
IS_USER, IS_VIRTUAL_DISK, IS_REQUIRED = 1, 2, 4

NO_GUID = bytes(16)


def guid(text):
    """The 16 bytes on disk of a GUID given as text (format section 0.3); bytes pass through."""
    return bytes(text) if isinstance(text, (bytes, bytearray)) else uuid.UUID(text).bytes_le


def guid_text(data):
    """Lower case text of 16 bytes on disk, without braces."""
    return str(uuid.UUID(bytes_le=bytes(data)))


def seeded_guid(seed, name):
    """A GUID that depends on nothing but its arguments."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()


def seeded_int(seed, name, bits):
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - bits)


REGION_GUIDS = {
    "bat": guid("2DC27766-F623-4200-9D64-115E9BFD4A08"),
    "metadata": guid("8B7CA206-4790-4B9A-B8FE-575F050F886E"),
}

ITEM_GUIDS = {
    "file_parameters": guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B"),
    "virtual_disk_size": guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8"),
    "virtual_disk_id": guid("BECA12AB-B2E6-4523-93EF-C309E000C746"),
    "logical_sector_size": guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F"),
    "physical_sector_size": guid("CDA348C7-445D-4471-9CC9-E9885251C556"),
    "parent_locator": guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"),
    "chs_parameters": guid("DA02D7BC-3D3A-423C-AC88-2A36AB21479B"),
    "incomplete_file": guid("71CC85F0-1B69-4E28-9558-C3BF83AE75D3"),
    "pmem_labels": guid("10E1AE8A-4B7E-4169-A40F-CD70DE928393"),
}

ITEM_FLAGS = {
    "file_parameters": IS_REQUIRED,
    "virtual_disk_size": IS_VIRTUAL_DISK | IS_REQUIRED,
    "virtual_disk_id": IS_VIRTUAL_DISK | IS_REQUIRED,
    "logical_sector_size": IS_VIRTUAL_DISK | IS_REQUIRED,
    "physical_sector_size": IS_VIRTUAL_DISK | IS_REQUIRED,
    "parent_locator": IS_REQUIRED,
    "chs_parameters": IS_VIRTUAL_DISK,
    "incomplete_file": IS_REQUIRED,
    "pmem_labels": IS_VIRTUAL_DISK,
}

LOCATOR_TYPE_VHDX = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913")


def round_up(value, unit):
    return -(-value // unit) * unit


def identifier(signature, creator):
    """The first 520 bytes of the file; creator is text or, for odd ones, raw bytes."""
    raw = creator if isinstance(creator, bytes) else creator.encode("utf-16-le", "surrogatepass")
    return signature + raw[:512].ljust(512, b"\0")


def header(*, signature=b"head", seq, file_write_guid, data_write_guid, log_guid, log_version=0, version=1,
           log_length, log_offset, reserved=b"", checksum=None):
    body = struct.pack("<4sIQ16s16s16sHHIQ", signature, 0, seq, file_write_guid, data_write_guid, log_guid,
                       log_version, version, log_length, log_offset) + reserved
    return _checked(body.ljust(HEADER_SIZE, b"\0"), checksum)


def region_entry(guid_bytes, offset, length, required):
    return struct.pack("<16sQII", guid_bytes, offset, length, required)


def region_table(entries, *, count=None, signature=b"regi", reserved=0, checksum=None, behind=b""):
    """entries are 32 bytes each; behind is what follows the last one (garbage that the checksum covers)."""
    body = struct.pack("<4sIII", signature, 0, len(entries) if count is None else count, reserved)
    body += b"".join(entries) + behind
    return _checked(body[:TABLE_SIZE].ljust(TABLE_SIZE, b"\0"), checksum)


def metadata_entry(guid_bytes, offset, length, flags, reserved=0):
    return struct.pack("<16sIIII", guid_bytes, offset, length, flags, reserved)


def metadata_table(entries, *, count=None, signature=b"metadata", reserved=0, reserved2=b"", behind=b""):
    body = struct.pack("<8sHH20s", signature, reserved, (len(entries) if count is None else count) & 0xFFFF,
                       reserved2)
    return (body + b"".join(entries) + behind)[:TABLE_SIZE]


def bat_entry(state, offset):
    if offset % MiB:
        raise ValueError(f"a BAT entry cannot hold file offset {offset:#x}: not a multiple of 1 MiB")
    return offset | state


def _checked(body, checksum):
    if checksum is None:
        return with_checksum(body)
    return body[:4] + struct.pack("<I", checksum) + body[8:]


class Geometry:
    """Counts and index formulas of the BAT (format section 5.2)."""

    def __init__(self, size, block_size, lss, differencing):
        self.block_size = block_size
        self.sectors_per_block = block_size // lss
        self.chunk_ratio = (1 << 23) * lss // block_size
        self.blocks = -(-size // block_size)
        self.chunks = -(-self.blocks // self.chunk_ratio)
        if differencing:
            self.entries = self.chunks * (self.chunk_ratio + 1)
        else:
            self.entries = self.blocks + (self.blocks - 1) // self.chunk_ratio

    def payload_index(self, block):
        return block + block // self.chunk_ratio

    def bitmap_index(self, chunk):
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio
