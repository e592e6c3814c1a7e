"""The pictures that `GET {image_ref}` answers with: the last parts, and more of those not OK.

References: `img/<trigger_id>` the frame (its own JPEG or PNG bytes, else a JPEG), `...:thumb` a
small JPEG, `...:map` the anomaly map as grey PNG over the whole frame (128 = alarm level). What
is no longer in memory is looked for in the archive on disk.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.preprocess import Box
from station.parts import PartRecord
from station.record_mcap import image_format
from station.record_pictures import map_png, thumb_jpeg
from station.schema import Verdict
from station.sources.base import Frame
from station.sources.decode import decoded

MAX_PICTURE = 4 << 20  # the bus allows no more
OK_BYTES = 48 << 20
NOT_OK_BYTES = 192 << 20
MEDIA = {"jpeg": "image/jpeg", "png": "image/png"}
Picture = tuple[str, bytes]


@dataclass(frozen=True)
class _Held:
    frame: Frame
    map: NDArray[np.float32] | None
    box: Box | None
    level: float

    @property
    def size(self) -> int:
        pixels = 0 if self.frame.image is None else int(self.frame.image.nbytes)
        return pixels + len(self.frame.raw or b"") + (0 if self.map is None else self.map.nbytes)


def ref_of(trigger_id: str) -> str:
    """The image_ref of a part."""
    return f"img/{trigger_id}"


class PictureStore:
    """PartObserver and answerer of GET. Thread-safe; encodes only what is asked for."""

    def __init__(self, on_disk: Callable[[str, str], Picture | None] | None = None) -> None:
        """`on_disk(trigger_id, kind)` finds older pictures; kind is "", "thumb" or "map"."""
        self._lock = threading.Lock()
        self._shelves: dict[bool, OrderedDict[str, _Held]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }
        self._bytes = {True: 0, False: 0}
        self._on_disk = on_disk

    def part(self, record: PartRecord) -> None:
        """Hold the part's picture and map."""
        if record.frame is None or (record.frame.image is None and record.frame.raw is None):
            return
        level = record.threshold if record.threshold is not None else 0.5
        held = _Held(record.frame, record.map, record.region_box, level)
        self._put(record.result.verdict is Verdict.OK, record.result.trigger_id, held)

    def image(self, ref: str) -> Picture | None:
        """(media type, bytes) of a reference, or None. Any thread; may take some milliseconds."""
        base, _, kind = ref.partition(":")
        trigger_id = base.rpartition("/")[2]
        held = self._find(trigger_id)
        if held is not None:
            return _draw(held, kind)
        return self._on_disk(trigger_id, kind) if self._on_disk else None

    def close(self) -> None:
        """Let go of all pictures."""
        with self._lock:
            for shelf in self._shelves.values():
                shelf.clear()

    def _put(self, ok: bool, trigger_id: str, held: _Held) -> None:
        limit = OK_BYTES if ok else NOT_OK_BYTES
        shelf = self._shelves[ok]
        with self._lock:
            shelf[trigger_id] = held
            self._bytes[ok] += held.size
            while self._bytes[ok] > limit and len(shelf) > 1:
                self._bytes[ok] -= shelf.popitem(last=False)[1].size

    def _find(self, trigger_id: str) -> _Held | None:
        with self._lock:
            return self._shelves[False].get(trigger_id) or self._shelves[True].get(trigger_id)


def _draw(held: _Held, kind: str) -> Picture | None:
    if kind == "":
        form = image_format(held.frame.raw)
        if form is not None and held.frame.raw is not None and len(held.frame.raw) <= MAX_PICTURE:
            return MEDIA[form], held.frame.raw
    frame = decoded(held.frame)
    if frame.image is None:
        return None
    if kind == "thumb":
        return "image/jpeg", thumb_jpeg(frame.image)
    if kind == "map":
        if held.map is None:
            return None
        height, width = frame.image.shape[:2]
        return "image/png", map_png(held.map, held.box, (height, width), held.level)
    return ("image/jpeg", thumb_jpeg(frame.image, 2560, 90)) if kind == "" else None
