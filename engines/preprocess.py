"""The one way from a frame to the pixels of the model.

Training, enrolment, INT8 calibration, evaluation, replay and the station all call this module, and
`spec_hash` goes into every artefact: two resizes in one product is the classic silent accuracy bug.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

SPEC: dict[str, Any] = {
    "version": 1,
    "size": 240,
    "fit": "squash",
    "shrink": "INTER_AREA",
    "grow": "INTER_CUBIC",
    "mixed": "shrinking axis first, then growing axis",
    "order": "RGB",
    "scale": 255,
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
"""Everything that decides a pixel; the code below reads its parameters from here."""

SIZE: int = SPEC["size"]
_scratch = threading.local()


@dataclass(frozen=True)
class Box:
    """A rectangle in original pixels; x, y is the upper left corner."""

    x: int
    y: int
    w: int
    h: int


def spec_hash() -> str:
    """sha256 (hex) of SPEC: interpolation, order, size, mean and std."""
    return hashlib.sha256(json.dumps(SPEC, sort_keys=True).encode()).hexdigest()


def _cv_resize(image: U8, size: tuple[int, int], how: int, out: U8 | None = None) -> U8:
    return cast(U8, cv2.resize(image, size, dst=out, interpolation=how))


def resize(image: U8, out: U8 | None = None) -> U8:
    """Squash (H,W,3) u8 to (240,240,3) u8, channel order kept.

    Area averaging per axis that shrinks, bicubic per axis that grows: cv2's bicubic does not
    antialias, so it may never shrink. Raises ValueError for anything but non-empty u8 (H,W,3).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"resize wants u8 (H,W,3), not {image.dtype} {image.shape}")
    shrink, grow = getattr(cv2, SPEC["shrink"]), getattr(cv2, SPEC["grow"])
    height, width = image.shape[:2]
    if height >= SIZE and width >= SIZE:
        return _cv_resize(image, (SIZE, SIZE), shrink, out)
    if height <= SIZE and width <= SIZE:
        return _cv_resize(image, (SIZE, SIZE), grow, out)
    half = (SIZE, height) if width > SIZE else (width, SIZE)
    return _cv_resize(_cv_resize(image, half, shrink), (SIZE, SIZE), grow, out)


def _spans(start: int, length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` equal spans that cover [start, start+length) with the given overlap share."""
    size = min(length, int(np.ceil(length / (count - (count - 1) * overlap))))
    steps = max(count - 1, 1)
    return [(start + round(i * (length - size) / steps), size) for i in range(count)]


def tile_boxes(
    shape_hw: tuple[int, int], region: Box | None, grid: tuple[int, int], overlap: float = 0.1
) -> tuple[Box, ...]:
    """Rows x cols overlapping tiles of the region (None = whole frame), row by row.

    Raises ValueError when the region leaves the frame or a tile would be empty.
    """
    height, width = shape_hw
    r = region or Box(0, 0, width, height)
    if r.x < 0 or r.y < 0 or r.w < 1 or r.h < 1 or r.x + r.w > width or r.y + r.h > height:
        raise ValueError(f"region {r.x},{r.y},{r.w},{r.h} leaves the {width}x{height} px frame")
    rows, cols = grid
    if not (1 <= rows <= r.h and 1 <= cols <= r.w and 0 <= overlap < 1):
        raise ValueError(f"cannot cut {r.w}x{r.h} px into {rows}x{cols} tiles, overlap {overlap}")
    return tuple(
        Box(x, y, w, h)
        for y, h in _spans(r.y, r.h, rows, overlap)
        for x, w in _spans(r.x, r.w, cols, overlap)
    )


def to_tiles(frame_bgr: U8, boxes: Sequence[Box], out: U8 | None = None) -> U8:
    """BGR frame (H,W,3) and B boxes -> RGB tiles u8 (B,240,240,3); `out` is filled if given."""
    tiles = np.empty((len(boxes), SIZE, SIZE, 3), np.uint8) if out is None else out
    swap = SPEC["order"] == "RGB"
    if not hasattr(_scratch, "tile"):
        _scratch.tile = np.empty((SIZE, SIZE, 3), np.uint8)
    for tile, b in zip(tiles, boxes, strict=True):
        part = frame_bgr[b.y : b.y + b.h, b.x : b.x + b.w]
        if swap:
            cv2.cvtColor(resize(part, _scratch.tile), cv2.COLOR_BGR2RGB, dst=tile)
        else:
            resize(part, tile)
    return tiles


def stitch(
    maps: F32, boxes: Sequence[Box], shape_hw: tuple[int, int], region: Box | None = None
) -> F32:
    """Tile maps (B,240,240) -> one map (h,w) over the region, bilinear, maximum in overlaps."""
    r = region or Box(0, 0, shape_hw[1], shape_hw[0])
    whole = np.zeros((r.h, r.w), np.float32)
    for tile, b in zip(maps, boxes, strict=True):
        part = cast(F32, cv2.resize(tile, (b.w, b.h), interpolation=cv2.INTER_LINEAR))
        y, x = b.y - r.y, b.x - r.x
        view = whole[y : y + b.h, x : x + b.w]
        np.maximum(view, part, out=view)
    return whole
