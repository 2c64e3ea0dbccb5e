# SPDX-License-Identifier: MIT
"""Images as their makers lay them out (format sections 1.4 and 10.1 to 10.3).  Keywords override any field."""
from .encode import FULLY_PRESENT, GiB, MiB, TiB, ZERO, round_up, seeded_guid, seeded_int
from .image import Header, Image, Item, Region


def windows(size, **keywords):
    """Windows: 32 MiB blocks (2 MiB in differencing images), log, metadata, BAT, payload; header pair even/odd."""
    differencing = keywords.get("parent") is not None or keywords.get("kind") == "differencing"
    fields = {"block_size": 2 * MiB if differencing else 32 * MiB, "creator": "Microsoft Windows 10.0.20348.0"}
    return Image(size, **{**fields, **keywords})


def qemu(size, subformat="dynamic", block_state_zero=True, **keywords):
    """QEMU: log, BAT, metadata, a 4 MiB gap, payload; Required = 0; BAT full of ZERO entries; the headers' data
    write GUIDs differ.

    subformat "fixed" by default has ZERO entries too and merely the length of a full disk; with
    block_state_zero=False the entries are FULLY_PRESENT.  Either way the file ends where the disk does, which may be
    inside the last block; blocks written in a fixed image with ZERO entries lie behind that, so give file_length=.
    """
    seed = keywords.get("seed", 0)
    blocks = ((1 * GiB, 8 * MiB), (100 * GiB, 16 * MiB), (32 * TiB, 32 * MiB))
    block_size = next((block for limit, block in blocks if size <= limit), 64 * MiB)
    seq = seeded_int(seed, "qemu header", 32)
    fields = {
        "block_size": block_size, "pss": 512, "creator": "QEMU v7.2.22", "stale_item_entry": False,
        "kind": "dynamic" if subformat == "dynamic" else "fixed",
        "default_state": ZERO if block_state_zero else (0 if subformat == "dynamic" else FULLY_PRESENT),
        "headers": [Header(seq), Header(seq + 1, data_write_guid=seeded_guid(seed, "qemu second half"))],
        "regions": [Region("bat", required=0), Region("metadata", required=0)],
        "order": ["log", "bat", "metadata"], "payload_gap": 4 * MiB,
        "items": [Item(name) for name in ("file_parameters", "virtual_disk_size", "virtual_disk_id",
                                          "logical_sector_size", "physical_sector_size")],
    }
    image = Image(size, **{**fields, **keywords})
    if subformat == "fixed" and image.file_length is None:
        payload = round_up(image.geometry.entries * 8, MiB) + 7 * MiB
        image.file_length = payload + size
    return image


def disk2vhd(size, **keywords):
    """Disk2vhd: two identical headers with sequence 1, metadata before the BAT, all blocks present in a dynamic
    image, 512 bytes behind the last block."""
    fields = {
        "block_size": 2 * MiB, "pss": 512, "creator": "d2v", "stale_item_entry": False,
        "default_state": FULLY_PRESENT, "headers": [Header(1), Header(1)],
        "regions": [Region("metadata"), Region("bat")], "trailing": 512,
    }
    return Image(size, **{**fields, **keywords})


PRESETS = {"windows": windows, "qemu": qemu, "disk2vhd": disk2vhd}
