"""Full-size frames for the gate and for INT8 calibration: real ones where given, else drawn."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.preprocess import SIZE, tile_boxes, to_tiles
from export.frames import draw

U8 = NDArray[np.uint8]
REFERENCES, HELD_OUT, PER_SET = 2, 8, 12


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


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows evenly over the list (a list is sorted by category)."""
    step = max(len(rows) / count, 1)
    return [rows[int(i * step)] for i in range(min(count, len(rows)))]


def _read(path: Path, flag: int = cv2.IMREAD_COLOR) -> U8:
    image = cv2.imread(str(path), flag)
    if image is None:
        raise EngineError(f"gate frame {path} cannot be read")
    return image  # type: ignore[return-value]


def _frame(root: Path, row: dict[str, Any]) -> GateFrame:
    image = _read(root / row["image"])
    mask: NDArray[np.bool_] | None = np.zeros((SIZE, SIZE), bool)
    if not row["normal"]:
        drawn = row.get("mask")
        mask = _small_mask(_read(root / drawn, cv2.IMREAD_GRAYSCALE)) if drawn else None
    return GateFrame(row["image"], root.name, to_tile(image), mask, bool(row["normal"]))


def _real_set(root: Path, per_set: int) -> GateSet:
    rows = [json.loads(line) for line in (root / "index.jsonl").read_text().splitlines()]
    good = [r for r in rows if r["normal"] and r["split"] == "train"]
    spare = [r for r in rows if r["normal"] and r["split"] == "val"]
    bad = [r for r in rows if not r["normal"] and r["split"] == "val"]
    few = min(REFERENCES + HELD_OUT, max(len(good) - 1, 1))
    picked = [to_tile(_read(root / r["image"])) for r in _spread(good, few)]
    shots = min(REFERENCES, few // 2 or 1)
    half = min(len(spare), per_set // 2)
    chosen = _spread(spare, half) + _spread(bad, per_set - half)
    frames = tuple(_frame(root, r) for r in chosen)
    return GateSet(root.name, tuple(picked[:shots]), tuple(picked[shots:] or picked), frames)


def gate_sets(data: Path | None, per_set: int = PER_SET) -> list[GateSet]:
    """Sets under `data` (folders with index.jsonl), or drawn ones when there is no data."""
    roots = sorted(p.parent for p in data.glob("*/index.jsonl")) if data else []
    return [_real_set(r, per_set) for r in roots] if roots else drawn_sets()
