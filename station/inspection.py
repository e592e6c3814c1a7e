"""From a frame to a verdict: cut, resize, one engine call, judge. No threads, no ledger, no bus."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.recipe import LoadedRecipe
from engines.buffers import Buffers
from engines.detector import Answer
from engines.facts import Region, half_peak_level, regions
from engines.preprocess import SIZE, Box, stitch, tile_boxes, to_tiles
from station.schema import Reason, Verdict
from station.sources.base import Frame
from station.sources.decode import decoded
from station.verdict import judge

_CROP_PX = 240  # the describer's thumbnail of the inspected region
_buffers = Buffers()  # of tiles: used again when the last observer of their part has let go


class Engine(Protocol):
    """What the station needs of engines.detector.Detector; tests bring slow and lying ones."""

    engine_sha: str
    precision: str
    runtime: str

    def run(self, tiles: NDArray[np.uint8], group: NDArray[np.int64] | None = None) -> Answer:
        """Tiles u8 (B,240,240,3) RGB -> Answer."""
        ...


@dataclass(frozen=True)
class Product:
    """What is being inspected: a bound engine and its recipe; without one it is zero-shot."""

    engine: Engine
    loaded: LoadedRecipe | None = None
    bundle_sha: str = ""
    anchors: NDArray[np.float32] | None = None  # f32 (2,E), for the describer's prefix
    shape: tuple[int, int] | None = None  # (H, W) that a camera must deliver, where known

    @property
    def name(self) -> str:
        """The recipe's name, "" for zero-shot."""
        return self.loaded.recipe.name if self.loaded else ""

    @property
    def sha(self) -> str:
        """The recipe's hash, "" for zero-shot."""
        return self.loaded.sha if self.loaded else ""

    @property
    def noun(self) -> str:
        """What a person calls the part."""
        return self.loaded.recipe.noun if self.loaded else "object"

    @property
    def threshold(self) -> float | None:
        """The recipe's threshold if it is a number (a learning recipe may have none)."""
        if self.loaded is None or not np.isfinite(self.loaded.threshold):
            return None
        return float(self.loaded.threshold)


@dataclass(frozen=True)
class Refusal:
    """A part that gets its verdict without the engine."""

    verdict: Verdict
    reason: Reason
    text: str


@dataclass(frozen=True)
class Prepared:
    """A frame ready for the engine: tiles u8 (B,240,240,3), or why it never gets there."""

    frame: Frame
    tiles: NDArray[np.uint8] | None
    boxes: tuple[Box, ...] = ()
    area: Box | None = None
    refusal: Refusal | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the frame."""
        assert self.frame.image is not None
        high, wide = self.frame.image.shape[:2]
        return high, wide


@dataclass(frozen=True)
class Judged:
    """The outcome of one part. map f32 (h,w) over `area`; answer None where no engine spoke."""

    verdict: Verdict
    reason: Reason
    score: float | None = None
    map: NDArray[np.float32] | None = None
    level: float | None = None
    regions: tuple[Region, ...] = ()
    region_count: int = 0
    answer: Answer | None = None
    best_tile: int = 0
    text: str = ""


def refuse(verdict: Verdict, reason: Reason, text: str) -> Judged:
    """An outcome without a score."""
    return Judged(verdict, reason, text=text)


def prepare(frame: Frame, product: Product, *, live: bool) -> Prepared:
    """Decode, check, cut and resize one frame (off the verdict path where frames are known).

    live: of a camera, whose pictures have one size. Only a camera, or its recording, has repeats.
    """
    if frame.repeat:
        text = f"{frame.name}: the same picture as before (a frozen or unplugged camera)"
        return _refused(frame, Verdict.ERROR, Reason.STALE_FRAME, text)
    frame = decoded(frame)
    image = frame.image
    if frame.fault is not None or image is None:
        return _refused(frame, Verdict.ERROR, Reason.CAMERA, frame.fault or "no picture")
    high, wide = image.shape[:2]
    recipe = product.loaded.recipe if product.loaded else None
    region = recipe.region if recipe else None
    if region and (region.x + region.w > wide or region.y + region.h > high):
        text = f"{frame.name}: {wide}x{high} does not hold the recipe's region {region}"
        return _refused(frame, Verdict.ERROR, Reason.CAMERA, text)
    if (live or frame.was_refused) and product.shape and product.shape != (high, wide):
        text = (
            f"{frame.name}: {wide}x{high}, not the {product.shape[1]}x{product.shape[0]} enrolled"
        )
        return _refused(frame, Verdict.ERROR, Reason.CAMERA, text)
    area = region or Box(0, 0, wide, high)
    boxes = recipe.boxes((high, wide)) if recipe else tile_boxes((high, wide), None, (1, 1))
    tiles = to_tiles(image, boxes, _buffers.take((len(boxes), SIZE, SIZE, 3), np.uint8))
    tile = tiles[0] if boxes == (area,) else None
    if product.loaded and (odd := _implausible(product.loaded, image, area, tile)):
        text = f"{frame.name}: {odd}"
        return _refused(frame, Verdict.UNDECIDED, Reason.IMPLAUSIBLE_FRAME, text)
    return Prepared(frame, tiles, boxes, area)


def _implausible(
    loaded: LoadedRecipe, image: NDArray[np.uint8], area: Box, tile: NDArray[np.uint8] | None
) -> str | None:
    if tile is not None:
        return loaded.plausible.check_tile(tile)
    return loaded.plausible.check(image[area.y : area.y + area.h, area.x : area.x + area.w])


def _refused(frame: Frame, verdict: Verdict, reason: Reason, text: str) -> Prepared:
    return Prepared(frame, None, refusal=Refusal(verdict, reason, text))


def infer(prepared: Sequence[Prepared], product: Product) -> Answer:
    """One engine call over the tiles of several parts of the same product, in order."""
    tiles = [p.tiles for p in prepared if p.tiles is not None]
    batch = tiles[0] if len(tiles) == 1 else np.concatenate(tiles)
    group = None
    if product.loaded:
        group = np.concatenate([product.loaded.recipe.groups(len(t)) for t in tiles])
    return product.engine.run(batch, group)


def split(answer: Answer, sizes: Sequence[int]) -> list[Answer]:
    """The answers of single parts out of a batch, tiles in order."""
    if len(sizes) == 1:
        return [answer]
    found, at = [], 0
    for size in sizes:
        part = slice(at, at + size)
        found.append(
            Answer(
                score=answer.score[part],
                map=answer.map[part],
                p=answer.p[part],
                distances=answer.distances[part],
                tokens=tuple(t[part] for t in answer.tokens),  # type: ignore[arg-type]
                cls=answer.cls[part],
                f_out=answer.f_out[part],
            )
        )
        at += size
    return found


def outcome(prepared: Prepared, answer: Answer, product: Product) -> Judged:
    """Verdict, map and regions of one part. The part's score is its worst tile's, NaN included."""
    scores = np.asarray(answer.score, np.float64).reshape(-1)
    if scores.size != len(prepared.boxes):
        text = f"the engine answered {scores.size} scores for {len(prepared.boxes)} tiles"
        return refuse(Verdict.ERROR, Reason.INFER, text)
    score = float(scores.max())  # numpy's max keeps a NaN: one unknown tile makes the part unknown
    # The sum of a map is finite just when all of it is, and needs no array of its own.
    if not np.isfinite(score) or not np.isfinite(answer.map.sum()):
        return refuse(Verdict.ERROR, Reason.NOT_FINITE, "the engine's answer is not finite")
    if product.loaded is None:
        verdict, reason = Verdict.UNDECIDED, Reason.RECIPE
    elif product.threshold is None:
        verdict, reason = Verdict.UNDECIDED, Reason.RECIPE  # learning, and no threshold yet
    else:
        verdict, reason = judge(score, product.threshold, product.loaded.recipe.learning)
    return _with_regions(prepared, answer, Judged(verdict, reason, score), scores)


def _with_regions(
    prepared: Prepared, answer: Answer, judged: Judged, scores: NDArray[np.float64]
) -> Judged:
    """Regions are outlined only on parts that are not OK: at half the map's peak."""
    area = prepared.area
    assert area is not None
    if len(prepared.boxes) == 1:
        heat = np.asarray(answer.map[0], np.float32)
    elif judged.verdict is Verdict.OK:
        heat = None
    else:
        heat = _stitched(prepared, answer, area)
    if heat is None or judged.verdict is Verdict.OK:
        return Judged(judged.verdict, judged.reason, judged.score, heat, answer=answer)
    level = half_peak_level(heat)
    found, count = regions(heat, level, (area.x, area.y), extent=(area.w, area.h))
    return Judged(
        verdict=judged.verdict,
        reason=judged.reason,
        score=judged.score,
        map=heat,
        level=level,
        regions=found,
        region_count=count,
        answer=answer,
        best_tile=int(scores.argmax()),
    )


def _stitched(prepared: Prepared, answer: Answer, area: Box) -> NDArray[np.float32]:
    """The map over the region at no more than about 1000 px a side (display and outlines)."""
    whole = stitch(answer.map, prepared.boxes, prepared.shape, area)
    scale = 1000 / max(whole.shape)
    if scale >= 1:
        return whole
    size = (max(1, int(whole.shape[1] * scale)), max(1, int(whole.shape[0] * scale)))
    return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.float32)


def crop_of(prepared: Prepared) -> NDArray[np.uint8] | None:
    """A BGR thumbnail of the inspected region, longest side 240, for the describer."""
    image, area = prepared.frame.image, prepared.area
    if image is None or area is None:
        return None
    cut = image[area.y : area.y + area.h, area.x : area.x + area.w]
    scale = min(1.0, _CROP_PX / max(cut.shape[:2]))
    size = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
    return np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA), np.uint8)
