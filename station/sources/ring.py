"""A ring of frames in anonymous shared memory between a camera child and the station.

One writer, one reader, no lock: a slot's sequence is odd while it is written, and the reader
compares it after copying (a torn copy is told, never used). Anonymous memory (memfd) instead of
/dev/shm files: nothing is left behind by kill -9 and a container's 64 MB /dev/shm does not matter.
"""

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines.errors import SourceError

# sequence, index, trigger, t_capture_ns, wall_us, nbytes, kind, height, width, channels, crc32
_HEADER = struct.Struct("<QQQQQQIIIII")
_SEQ = struct.Struct("<Q")
_HEADER_BYTES = 128
DEFAULT_SLOT_BYTES = 32 << 20  # address space; pages exist once a frame has touched them
_KINDS = ("bgr", "encoded")
Kind = Literal["bgr", "encoded"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One frame as copied out of the ring; `payload` is bytes, `shape` (H,W,C) for kind bgr."""

    index: int
    trigger: int
    t_capture_ns: int
    wall_us: int
    kind: Kind
    shape: tuple[int, int, int]
    crc: int
    payload: bytes

    def image(self) -> NDArray[np.uint8]:
        """The pixels of a bgr slot as BGR uint8 (H,W,3)."""
        return np.frombuffer(self.payload, np.uint8).reshape(self.shape)


class Ring:
    """`slots` frames of at most `slot_bytes`; made by the station, mapped by the child by fd."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.fd = fd
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._stride = _HEADER_BYTES + slot_bytes
        self._map = mmap.mmap(fd, slots * self._stride)

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> "Ring":
        """Raises SourceError when this machine's free memory cannot hold the ring."""
        slot_bytes = slot_bytes or DEFAULT_SLOT_BYTES
        need = slots * (_HEADER_BYTES + slot_bytes)
        free = available_bytes()
        if need > free:
            raise SourceError(
                f"the camera ring of {slots} x {slot_bytes >> 20} MiB does not fit the "
                f"{free >> 20} MiB of free memory; lower source.ring_slots or source.ring_bytes"
            )
        fd = os.memfd_create("station-ring")
        os.ftruncate(fd, need)
        return cls(fd, slots, slot_bytes)

    def write(
        self,
        index: int,
        payload: bytes | memoryview,
        kind: Kind,
        shape: tuple[int, int, int],
        *,
        times: tuple[int, int],
        trigger: int = 0,
    ) -> int:
        """Put frame `index` (from 0) in; times = (monotonic ns, wall us). Returns its slot."""
        size = memoryview(payload).nbytes
        if size > self.slot_bytes:
            raise ValueError(f"a frame of {size} bytes does not fit a slot of {self.slot_bytes}")
        slot = index % self.slots
        at = slot * self._stride
        crc = zlib.crc32(payload)
        head = (index, trigger, *times, size, _KINDS.index(kind), *shape, crc)
        _SEQ.pack_into(self._map, at, 2 * index + 1)
        self._map[at + _HEADER_BYTES : at + _HEADER_BYTES + size] = payload
        _HEADER.pack_into(self._map, at, 2 * index + 1, *head)
        _SEQ.pack_into(self._map, at, 2 * index + 2)
        return slot

    def read(self, slot: int, check: bool = False) -> Slot | None:
        """Copy a slot out; None when it was being overwritten. `check` also verifies the crc32."""
        at = slot * self._stride
        sequence, index, trigger, t_ns, wall, size, kind, *rest = _HEADER.unpack_from(self._map, at)
        if sequence & 1 or sequence == 0 or size > self.slot_bytes or kind >= len(_KINDS):
            return None
        payload = self._map[at + _HEADER_BYTES : at + _HEADER_BYTES + size]
        if _SEQ.unpack_from(self._map, at)[0] != sequence:
            return None
        height, width, channels, crc = rest
        if check and zlib.crc32(payload) != crc:
            return None
        shape = (height, width, channels)
        return Slot(index, trigger, t_ns, wall, _KINDS[kind], shape, crc, payload)  # type: ignore[arg-type]

    def close(self, *, close_fd: bool = True) -> None:
        """Unmap; the memory is gone when the child has done so too."""
        self._map.close()
        if close_fd:
            os.close(self.fd)


def available_bytes() -> int:
    """MemAvailable of this machine; where /proc is absent, its free pages."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
