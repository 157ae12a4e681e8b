"""Weights for a page: every row of a matrix as whole numbers of 12 bits and a scale, gzipped.

    scales float32 `[rows]`, low bytes uint8 `[values]`, high bits uint8 `[values]`; value = scale (number − 2047)

A row is what a weight's first side counts (an output channel); a vector's rows have one value, and are exact but
for rounding. The low bytes are noise, the high bits are few and often the same: apart, gzip makes 5.4 M weights
7.4 MiB. With 8 bits the 1-step student of the ladder that ships draws images up to 4.7 grey levels from its own;
with 10 bits its 8-step student is up to 1.8 apart, with 12 up to 0.4.
"""

import gzip
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 2**11 - 1  # the largest number beside 0
Array = np.ndarray[Any, np.dtype[np.float32]]


def rows(array: Array) -> list[int]:
    """How `array` is packed: [rows, values of a row]."""
    return [len(array), array.size // len(array)] if array.ndim else [1, 1]


def pack(arrays: Sequence[Array]) -> bytes:
    """`arrays`, float32 and finite, one after the other."""
    scales, numbers = [], []
    for array in arrays:
        table = array.reshape(rows(array))
        scale = np.abs(table).max(1, keepdims=True) / np.float32(MOST)
        scales.append(scale.astype("<f4"))
        numbers.append(np.rint(table / np.where(scale > 0, scale, 1)).astype(np.int16).clip(-MOST, MOST) + MOST)
    flat = np.concatenate([part.ravel() for part in numbers])
    planes = [(flat & 255).astype(np.uint8), (flat >> 8).astype(np.uint8)]
    return gzip.compress(b"".join(part.tobytes() for part in (*scales, *planes)), 9, mtime=0)


def unpack(content: bytes, layout: Sequence[Sequence[int]]) -> list[Array]:
    """The arrays, `[rows, values]`, of what `pack` gave, as the page reads it; `layout` has the `rows` of each."""
    packed, total = gzip.decompress(content), sum(height * width for height, width in layout)
    head = 4 * sum(height for height, _ in layout)
    scales = np.frombuffer(packed, "<f4", head // 4)
    low, high = np.frombuffer(packed, np.uint8, 2 * total, head).reshape(2, total).astype(np.int32)
    numbers, found, row, at = low + (high << 8) - MOST, [], 0, 0
    for height, width in layout:
        table = numbers[at : at + height * width].reshape(height, width)
        found.append((scales[row : row + height, None] * table.astype(np.float64)).astype(np.float32))
        row, at = row + height, at + height * width
    return found
