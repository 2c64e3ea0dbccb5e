# SPDX-License-Identifier: MIT
"""The parent locator item (format section 8)."""
import struct
from collections import namedtuple
from dataclasses import dataclass, field

from .encode import LOCATOR_TYPE_VHDX, NO_GUID, guid_text

HEADER_SIZE = 20
ENTRY_SIZE = 12

LocatorEntry = namedtuple("LocatorEntry", "key_offset value_offset key_length value_length")


def braced(guid_bytes):
    return "{" + guid_text(guid_bytes) + "}"


def _utf16(text):
    return text if isinstance(text, bytes) else text.encode("utf-16-le", "surrogatepass")


@dataclass
class Locator:
    """Keys and values are text, or bytes that are taken as they are (for invalid UTF-16).

    Strings are packed directly behind the entry table, key then value.  To malform entries, take entries(),
    change them (LocatorEntry is a namedtuple, so _replace) and set entries_override.
    """
    pairs: list = field(default_factory=list)
    type: bytes = LOCATOR_TYPE_VHDX
    reserved: int = 0
    count: int | None = None              # KeyValueCount, if it is not to be the number of entries
    entries_override: list | None = None
    gap: bytes = b""                      # between the entry table and the strings
    padding: bytes = b""                  # behind the strings
    raw: bytes | None = None              # the whole item

    @classmethod
    def windows(cls, linkage, absolute, relative, volume, linkage2=NO_GUID, **keywords):
        """The five keys in the order and manner of Windows (format section 8.2)."""
        return cls([("parent_linkage", braced(linkage)), ("absolute_win32_path", absolute),
                    ("relative_path", relative), ("volume_path", volume), ("parent_linkage2", braced(linkage2))],
                   **keywords)

    @classmethod
    def relative(cls, linkage, relative, linkage2=NO_GUID, **keywords):
        """The three keys that a writer on Linux stores."""
        return cls([("parent_linkage", braced(linkage)), ("relative_path", relative),
                    ("parent_linkage2", braced(linkage2))], **keywords)

    def set(self, key, value):
        """Changes the value of a key, or adds the pair at the end."""
        for index, (present, _) in enumerate(self.pairs):
            if present == key:
                self.pairs[index] = (key, value)
                return self
        self.pairs.append((key, value))
        return self

    def drop(self, key):
        self.pairs = [pair for pair in self.pairs if pair[0] != key]
        return self

    def entries(self):
        offset = HEADER_SIZE + ENTRY_SIZE * len(self.pairs) + len(self.gap)
        result = []
        for key, value in self.pairs:
            key_length, value_length = len(_utf16(key)), len(_utf16(value))
            result.append(LocatorEntry(offset, offset + key_length, key_length, value_length))
            offset += key_length + value_length
        return result

    def encode(self):
        if self.raw is not None:
            return self.raw
        entries = self.entries() if self.entries_override is None else self.entries_override
        count = len(entries) if self.count is None else self.count
        return (struct.pack("<16sHH", self.type, self.reserved, count)
                + b"".join(struct.pack("<IIHH", *entry) for entry in entries)
                + self.gap + b"".join(_utf16(key) + _utf16(value) for key, value in self.pairs) + self.padding)
