# SPDX-License-Identifier: MIT
"""CRC-32C (Castagnoli, reflected; format section 0.4) in plain Python, quick enough for log entries of many MiB.

Two bytes are taken per table lookup, and 4 KiB of zeros cost one step: advancing over zeros is a linear
map of the 32-bit state, so it is precomputed.  What other 4 KiB do is remembered, since most images of a test file have
the same headers and tables.
"""
import functools
import struct

_CHUNK = 4096
_ZERO_CHUNK = bytes(_CHUNK)
_WORDS = struct.Struct(f"<{_CHUNK // 2}H")


def _byte_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
        table.append(value)
    return table


_BYTE = _byte_table()


def _word_table():
    table = []
    for word in range(65536):
        state = _BYTE[word & 0xFF] ^ (word >> 8)
        table.append(_BYTE[state & 0xFF] ^ (state >> 8))
    return table


_WORD = _word_table()


def _apply(matrix, state):
    result = 0
    for bit in range(32):
        if state >> bit & 1:
            result ^= matrix[bit]
    return result


def _zero_chunk_tables():
    """Four tables of 256 that together advance the state over _CHUNK zero bytes."""
    matrix = [_BYTE[(1 << bit) & 0xFF] ^ ((1 << bit) >> 8) for bit in range(32)]
    for _ in range(_CHUNK.bit_length() - 1):
        matrix = [_apply(matrix, column) for column in matrix]
    return [[_apply(matrix, value << shift) for value in range(256)] for shift in (0, 8, 16, 24)]


_Z0, _Z1, _Z2, _Z3 = _zero_chunk_tables()


@functools.lru_cache(maxsize=4096)
def _advance(state, chunk):
    for word in _WORDS.unpack(chunk):
        state = _WORD[(state ^ word) & 0xFFFF] ^ (state >> 16)
    return state


def crc32c(data, crc=0):
    """The checksum of data; crc is the checksum of what came before it."""
    view = memoryview(data).cast("B")
    state = crc ^ 0xFFFFFFFF
    whole = len(view) // _CHUNK * _CHUNK
    for start in range(0, whole, _CHUNK):
        chunk = view[start:start + _CHUNK]
        if chunk == _ZERO_CHUNK:
            state = _Z0[state & 0xFF] ^ _Z1[state >> 8 & 0xFF] ^ _Z2[state >> 16 & 0xFF] ^ _Z3[state >> 24]
        else:
            state = _advance(state, bytes(chunk))
    for byte in view[whole:]:
        state = _BYTE[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def with_checksum(data, offset=4):
    """A copy of data whose 32-bit field at offset holds the checksum over data with that field as zero."""
    result = bytearray(data)
    result[offset:offset + 4] = bytes(4)
    struct.pack_into("<I", result, offset, crc32c(result))
    return bytes(result)
