"""Full-size frames for the gate and for INT8 calibration: real ones where given, else drawn."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.preprocess import SIZE, tile_boxes, to_tiles
from export.frames import draw
from export.gate_data import GateData, Row, read_rows

U8 = NDArray[np.uint8]
REFERENCES, HELD_OUT, PER_SET = 2, 8, 12
LEAST = 32
"""Frames the gate judges at least (issue 3), whatever the sets hold."""


@dataclass(frozen=True)
class GateFrame:
    """A tile u8 (240,240,3) RGB made from a full-size frame, with its truth.

    mask bool (240,240); None where the part is defective but nobody drew where.
    """

    name: str
    set: str
    tile: U8
    mask: NDArray[np.bool_] | None
    normal: bool


@dataclass(frozen=True)
class GateSet:
    """One kind of part: good parts to enrol from, good parts for the threshold, frames to judge."""

    name: str
    references: tuple[U8, ...]
    held_out: tuple[U8, ...]
    frames: tuple[GateFrame, ...]


def to_tile(frame: U8) -> U8:
    """Whole frame BGR -> tile RGB u8 (240,240,3)."""
    return to_tiles(frame, tile_boxes(frame.shape[:2], None, (1, 1)))[0]


def _small_mask(mask: U8) -> NDArray[np.bool_]:
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST) > 127


def drawn_sets() -> list[GateSet]:
    """Three kinds of drawn parts, 12 frames each."""
    sets = []
    for kind in range(3):
        name = f"drawn{kind}"
        indices = [kind + 3 * i for i in range(REFERENCES + HELD_OUT + PER_SET)]
        good = [to_tile(draw(i, defective=False).image) for i in indices]
        frames = []
        for n, i in enumerate(indices[REFERENCES + HELD_OUT :]):
            part = draw(i, defective=n % 2 == 1)
            mask = _small_mask(part.mask)
            frames.append(GateFrame(part.name, name, to_tile(part.image), mask, part.normal))
        held = good[REFERENCES : REFERENCES + HELD_OUT]
        sets.append(GateSet(name, tuple(good[:REFERENCES]), tuple(held), tuple(frames)))
    return sets


def _spread(rows: list[Row], count: int) -> list[Row]:
    """`count` rows evenly over the list (a list is sorted by category)."""
    step = max(len(rows) / max(count, 1), 1)
    return [rows[int(i * step)] for i in range(min(count, len(rows)))]


def _read(path: Path, flag: int = cv2.IMREAD_COLOR) -> U8:
    image = cv2.imread(str(path), flag)
    if image is None:
        raise EngineError(f"gate frame {path} cannot be read: correct the index or the file")
    return image  # type: ignore[return-value]


def _mask(root: Path, row: Row) -> NDArray[np.bool_] | None:
    """Truth of a frame at 240 px; None where it is defective and no mask says where."""
    if row["normal"]:
        return np.zeros((SIZE, SIZE), bool)
    if not row.get("mask"):
        return None
    drawn = _read(root / row["mask"], cv2.IMREAD_GRAYSCALE)
    # An empty mask on a defective part would count its defect as good pixels.
    return _small_mask(drawn) if (drawn > 127).any() else None


def _frame(root: Path, row: Row) -> GateFrame:
    tile = to_tile(_read(root / row["image"]))
    return GateFrame(row["image"], root.name, tile, _mask(root, row), row["normal"])


def _real_set(root: Path, per_set: int) -> GateSet:
    """`per_set` frames of split val, half of them good where there are as many of both kinds.

    EngineError when the set has nothing to enrol from or nothing to judge.
    """
    rows = read_rows(root)
    good = [r for r in rows if r["normal"] and r["split"] == "train"]
    spare = [r for r in rows if r["normal"] and r["split"] == "val"]
    bad = [r for r in rows if not r["normal"] and r["split"] == "val"]
    if len(good) < 2 or not spare + bad:
        raise EngineError(
            f"set {root} cannot be used by the gate: it needs 2 good parts of split train (has "
            f"{len(good)}) and one part of split val (has {len(spare + bad)}); add them to "
            "index.jsonl or leave the set out of --data"
        )
    few = min(REFERENCES + HELD_OUT, max(len(good) - 1, 2))
    picked = [to_tile(_read(root / r["image"])) for r in _spread(good, few)]
    shots = min(REFERENCES, few // 2)
    half = max(min(len(spare), per_set // 2), per_set - len(bad))
    chosen = _spread(spare, half) + _spread(bad, per_set - min(half, len(spare)))
    frames = tuple(_frame(root, r) for r in chosen)
    return GateSet(root.name, tuple(picked[:shots]), tuple(picked[shots:]), frames)


def _enough(sets: list[GateSet]) -> bool:
    """At least LEAST frames, and one set with both good and located defective ones."""
    told = [{f.normal for f in s.frames if f.mask is not None} for s in sets]
    return sum(len(s.frames) for s in sets) >= LEAST and any(len(kinds) == 2 for kinds in told)


def gate_sets(data: GateData) -> list[GateSet]:
    """The sets of `data`; drawn ones join as far as those do not make a gate, or where none are."""
    per_set = max(PER_SET, -(-LEAST // max(len(data.roots), 1)))
    sets = [_real_set(root, per_set) for root in data.roots]
    for drawn in drawn_sets():
        if data.roots and _enough(sets):
            break
        sets.append(drawn)
    return sets
