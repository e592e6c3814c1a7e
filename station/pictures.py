"""Pictures of recent parts in memory, for `GET {image_ref}`, `:thumb` and `:map`."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from station.parts import PartRecord
from station.record_pictures import map_png
from station.schema import Verdict
from station.sources.base import Frame
from station.sources.decode import decoded

_MOST_BYTES = 4 << 20  # of a picture on the bus
_THUMB_PX = 320
_PREFIX = "part/"
Media = tuple[str, bytes]


def image_ref(trigger_id: str) -> str:
    """The image_ref of a part."""
    return _PREFIX + trigger_id


class Pictures:
    """PartObserver: the last `recent` parts and the last `rejects` that are not OK; any thread.

    `fallback(trigger_id, kind)` is asked for what memory has forgotten (the archive).
    """

    def __init__(self, recent: int = 64, rejects: int = 64) -> None:
        self.fallback: Callable[[str, str], Media | None] = lambda _id, _kind: None
        self._recent: OrderedDict[str, PartRecord] = OrderedDict()
        self._rejects: OrderedDict[str, PartRecord] = OrderedDict()
        self._limits = (recent, rejects)
        self._lock = threading.Lock()

    def part(self, record: PartRecord) -> None:
        """Remember a part as its encoded bytes and its map; the oldest is forgotten."""
        if record.frame is None or record.result.image_ref is None:
            return
        # Half precision: a map is drawn with 8 bits, and 128 of them are kept.
        heat = None if record.map is None else record.map.astype(np.float16)
        kept = replace(record, frame=_packed(record.frame), map=heat)  # type: ignore[arg-type]
        key = record.result.trigger_id
        with self._lock:
            _put(self._recent, key, kept, self._limits[0])
            if record.result.verdict is not Verdict.OK:
                _put(self._rejects, key, kept, self._limits[1])

    def close(self) -> None:
        """Nothing is held open."""

    def get(self, ref: str) -> Media | None:
        """(media type, bytes) of an image_ref with ":thumb", ":map" or nothing; None: unknown."""
        base, _, kind = ref.partition(":")
        key = base.removeprefix(_PREFIX)
        with self._lock:
            record = self._recent.get(key) or self._rejects.get(key)
        if record is None or record.frame is None:
            return self._from_archive(key, kind)
        if kind == "map":
            return _map(record)
        return _picture(record.frame, small=kind == "thumb") if kind in ("", "thumb") else None

    def _from_archive(self, key: str, kind: str) -> Media | None:
        if kind != "thumb":
            return self.fallback(key, kind)
        whole = self.fallback(key, "")
        return _picture(_frame_of(whole[1]), small=True) if whole else None


def _put(store: "OrderedDict[str, PartRecord]", key: str, item: PartRecord, limit: int) -> None:
    store[key] = item
    while len(store) > limit:
        store.popitem(last=False)


def _packed(frame: Frame) -> Frame:
    """Bytes instead of pixels: 128 decoded 5-megapixel pictures would be 2 GB."""
    if frame.raw is not None or frame.image is None:
        return replace(frame, image=None)
    return replace(frame, image=None, raw=_jpeg(frame.image, 92))


def _frame_of(raw: bytes) -> Frame:
    return Frame(image=None, raw=raw, name="", t_capture_ns=0, wall_us=0, index=0)


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _picture(frame: Frame, *, small: bool) -> Media | None:
    """The original bytes where they are a JPEG or PNG of allowed size, else a JPEG."""
    raw = frame.raw or b""
    if not small and len(raw) <= _MOST_BYTES:
        if raw[:2] == b"\xff\xd8":
            return "image/jpeg", raw
        if raw[:4] == b"\x89PNG":
            return "image/png", raw
    image = decoded(frame).image
    if image is None:
        return None
    if small:
        return "image/jpeg", _jpeg(_shrunk(image, _THUMB_PX), 80)
    # Quality goes before size: regions are boxes in original pixels.
    for quality in (85, 60, 35):
        data = _jpeg(image, quality)
        if len(data) <= _MOST_BYTES:
            return "image/jpeg", data
    return "image/jpeg", _jpeg(_shrunk(image, 2048), 80)


def _shrunk(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _map(record: PartRecord) -> Media | None:
    """The map drawn over the whole frame; 128 is the level above which a part is not good."""
    assert record.frame is not None
    image = decoded(record.frame).image
    if image is None or record.map is None:
        return None
    high, wide = image.shape[:2]
    return "image/png", map_png(record.map, record.region_box, (high, wide), record.alarm_level)
