"""Arrays that are used again once nobody holds them, so that a frame allocates nothing large.

Tiles and answers of a part live until its last observer has let go, which nobody tells; CPython's
reference count does. A view counts too, for it holds the array it looks into.
"""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST = 16
"""Arrays kept per shape: parts in flight and in observers' queues; more are made and forgotten."""


def _counts(kept: Sequence[NDArray[Any]]) -> int:
    """What `Buffers.take` reads for an array that nobody else holds: pythons count differently."""
    for array in kept:
        return sys.getrefcount(array)
    raise AssertionError


_ALONE = _counts([np.empty(1)])


class Buffers:
    """A pool for any thread. What `take` returns holds old values."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: dict[tuple[tuple[int, ...], np.dtype[Any]], list[NDArray[Any]]] = {}
        self._lock = threading.Lock()

    def take(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array of this shape that nobody else holds; the caller may keep it."""
        key = tuple(shape), np.dtype(dtype)
        with self._lock:
            kept = self._kept.setdefault(key, [])
            for array in kept:
                if sys.getrefcount(array) == _ALONE:
                    return array
            array = np.empty(*key)
            if len(kept) < self._most:
                kept.append(array)
            return array

    @property
    def count(self) -> int:
        """Arrays kept, of all shapes."""
        with self._lock:
            return sum(map(len, self._kept.values()))
