"""What the anomaly map says, in numbers and plain words: regions, place, shape, size, colour.

Everything here is computed from the map and the pixels alone; the describers put it into a
sentence and the consistency check holds a model's words against it. No model, no randomness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

GRID = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
EVERYWHERE = "everywhere"
LOCATIONS = (*(name for row in GRID for name in row), EVERYWHERE)
SHAPES = ("spot", "round", "elongated", "line", "irregular", "patch")
COLOURS = (
    "black", "dark grey", "grey", "light grey", "white", "red", "orange", "brown",
    "yellow", "green", "cyan", "blue", "purple", "pink",
)  # fmt: skip
Confidence = Literal["low", "medium", "high"]
CONFIDENCES: tuple[Confidence, ...] = ("low", "medium", "high")

# A component below this share of the map is one interpolated pixel or two, not a finding.
MIN_SHARE = 1e-4
# Above this share of the part no cell of a 3x3 grid is an honest answer to "where".
EVERYWHERE_SHARE = 0.5
# A cell counts as touched when it holds this share of a region's pixels.
CELL_SHARE = 0.15
# What good parts reach at each place: a grid of this side, the level that this share stays under.
USUAL_SIDE, USUAL_SHARE = 15, 0.9


@dataclass(frozen=True)
class Region:
    """One connected component of the map above a level, as a box in original pixels.

    `peak` is the highest map value inside it, `area` its size in original pixels (not the box's).
    """

    x: int
    y: int
    w: int
    h: int
    peak: float
    area: int


class Area(NamedTuple):
    """The inspected region in original pixels: where a map or crop lies in the frame."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True)
class Facts:
    """The describable facts of one part, all from map and pixels.

    `location` names the cell with the centre of the strongest region, `cells` every cell that a
    region touches. `size` is the longest extent of the strongest region, in px or (with a scale)
    mm, `size_text` the same as words ("34 px", "1.2 mm"). `shape`, `colour` describe that region.
    """

    defective: bool
    count: int
    location: str
    cells: tuple[str, ...]
    shape: str
    size: float
    size_text: str
    colour: str
    confidence: Confidence


def half_peak_level(map_: NDArray[np.float32], floor: float = 0.0) -> float:
    """Level of the half-maximum contour of a map (h,w), never under `floor`.

    The heat of a 15x15 grid fades smoothly, so its half maximum is the customary outline; `floor`
    is what good parts reach (from the recipe), so that an even map yields no region.
    """
    finite = map_[np.isfinite(map_)]
    return max(float(floor), 0.5 * float(finite.max())) if finite.size else float(floor)


def _components(
    map_: NDArray[np.float32], level: float
) -> tuple[NDArray[Any], NDArray[Any], list[int], NDArray[np.float64]]:
    """Labels (h,w), statistics, labels kept (strongest first) and the peak of every label."""
    hot = map_ > level  # NaN compares False: a broken pixel is never a region
    found = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=8)
    total, labels, stats = found[0], np.asarray(found[1], np.intp), np.asarray(found[2])
    peaks = np.full(total, -np.inf)
    np.maximum.at(peaks, labels[hot], map_[hot].astype(np.float64))
    order = sorted(range(1, total), key=lambda i: (-peaks[i], -stats[i, cv2.CC_STAT_AREA], i))
    least = MIN_SHARE * map_.size
    kept = [i for i in order if stats[i, cv2.CC_STAT_AREA] >= least]
    return labels, stats, kept or order[:1], peaks


def regions(
    map_: NDArray[np.float32],
    level: float,
    origin: tuple[int, int] = (0, 0),
    limit: int = 64,
    extent: tuple[int, int] | None = None,
) -> tuple[tuple[Region, ...], int]:
    """Connected regions of a map (h,w) f32 above `level`, strongest first, and how many there are.

    `origin` is the inspected region's corner (x, y) and `extent` its size (w, h) in original
    pixels; without `extent` the map is taken to be at original scale. Boxes are original pixels.
    At most `limit` are listed; the count is of all.
    """
    height, width = map_.shape
    fx, fy = (extent[0] / width, extent[1] / height) if extent else (1.0, 1.0)
    _, stats, kept, peaks = _components(map_, level)
    listed = tuple(
        _region(stats[i], float(peaks[i]), origin, (fx, fy), extent or (width, height))
        for i in kept[:limit]
    )
    return listed, len(kept)


def _region(
    stat: NDArray[np.int32],
    peak: float,
    origin: tuple[int, int],
    scale: tuple[float, float],
    extent: tuple[int, int],
) -> Region:
    x, y, w, h, area = (int(v) for v in stat)
    x0, y0 = int(x * scale[0]), int(y * scale[1])
    # The far edge rounds up but never past the inspected region.
    x1 = min(extent[0], int(np.ceil((x + w) * scale[0])))
    y1 = min(extent[1], int(np.ceil((y + h) * scale[1])))
    pixels = max(1, round(area * scale[0] * scale[1]))
    return Region(origin[0] + x0, origin[1] + y0, max(1, x1 - x0), max(1, y1 - y0), peak, pixels)


def small_heat(map_: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map (h,w) as the mean heat of each cell of a USUAL_SIDE grid."""
    side = (USUAL_SIDE, USUAL_SIDE)
    return np.asarray(cv2.resize(map_, side, interpolation=cv2.INTER_AREA), np.float32)


def usual_heat(heats: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Heat under which nine of ten good parts stay at each place, from their `small_heat`."""
    high = np.quantile(np.stack(heats), USUAL_SHARE, axis=0).astype(np.float32)
    return np.asarray(cv2.blur(high, (3, 3), borderType=cv2.BORDER_REPLICATE), np.float32)


def standing_out(
    map_: NDArray[np.float32], usual: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """A map (h,w) in units of what good parts reach at the same place: rims are often warm.

    Half the mean over all places is added, so that cold places do not rule. Without `usual` the
    map itself. Chosen on the train splits of `mt` and `bsdata` (docs/words_notes.md).
    """
    if usual is None or not float(usual.max()) > 0:
        return map_
    size = (map_.shape[1], map_.shape[0])
    level = cv2.resize(usual, size, interpolation=cv2.INTER_LINEAR) + 0.5 * usual.mean()
    return np.asarray(map_ / level, np.float32)


def cell_of(x: float, y: float) -> str:
    """Name of the 3x3 cell that holds a point given as fractions of width and height."""
    return GRID[min(2, max(0, int(y * 3)))][min(2, max(0, int(x * 3)))]


def part_facts(
    map_: NDArray[np.float32],
    level: float,
    area: Area,
    *,
    defective: bool,
    score: float,
    threshold: float,
    crop: NDArray[np.uint8] | None = None,
    mm_per_px: float | None = None,
    usual: NDArray[np.float32] | None = None,
) -> Facts:
    """Facts of one part from its map (h,w) over `area` (original pixels) above `level`.

    Place, shape, size and colour are those of the region that stands out most: by its peak, in
    units of what good parts reach at the same place where `usual` (`usual_heat`) tells it.

    `crop` is the inspected region as BGR uint8 of any size (colour needs it, else "grey"),
    `mm_per_px` the scale of the original frame or None. A part without a region above the level
    gives count 0, location of the map's peak and size 0.
    """
    labels, _, kept, _ = _components(map_, level)
    if len(kept) > 1 and usual is not None:
        out = standing_out(map_, usual)
        kept.sort(key=lambda i: -float(out[labels == i].max()))
    sure = confidence_word(score, threshold)
    if not kept:
        peak = np.unravel_index(int(np.nan_to_num(map_).argmax()), map_.shape)
        where = cell_of((peak[1] + 0.5) / map_.shape[1], (peak[0] + 0.5) / map_.shape[0])
        return Facts(defective, 0, where, (), "spot", 0.0, "0 px", "grey", sure)
    mask = labels == kept[0]
    where = location_word(mask, map_)
    cells = tuple(dict.fromkeys(c for i in kept[:8] for c in touched_cells(labels == i)))
    length, shape = extent_and_shape(mask, area)
    size, text = size_words(length, mm_per_px)
    colour = colour_word(crop, mask) if crop is not None else "grey"
    return Facts(defective, len(kept), where, cells, shape, size, text, colour, sure)


def location_word(mask: NDArray[np.bool_], weights: NDArray[np.float32] | None = None) -> str:
    """3x3 cell of the (weighted) centre of a mask (h,w), or "everywhere" when it covers half."""
    if mask.mean() > EVERYWHERE_SHARE:
        return EVERYWHERE
    ys, xs = np.nonzero(mask)
    w = np.ones(len(xs)) if weights is None else np.clip(weights[ys, xs], 1e-6, None)
    x = float(np.average(xs + 0.5, weights=w)) / mask.shape[1]
    y = float(np.average(ys + 0.5, weights=w)) / mask.shape[0]
    return cell_of(x, y)


def touched_cells(mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """Cells that hold at least CELL_SHARE of a mask's pixels, in reading order."""
    ys, xs = np.nonzero(mask)
    cell = (ys * 3 // mask.shape[0]) * 3 + xs * 3 // mask.shape[1]
    share = np.bincount(cell, minlength=9) / max(1, len(xs))
    return tuple(LOCATIONS[i] for i in range(9) if share[i] >= CELL_SHARE)


def extent_and_shape(mask: NDArray[np.bool_], area: Area) -> tuple[float, str]:
    """Longest extent in original pixels of a mask (h,w) over `area`, and its shape word."""
    ys, xs = np.nonzero(mask)
    points = np.stack([xs * area.w / mask.shape[1], ys * area.h / mask.shape[0]], 1)
    cell = (area.w / mask.shape[1], area.h / mask.shape[0])
    (_, (a, b), _) = cv2.minAreaRect(points.astype(np.float32))
    # minAreaRect measures between pixel centres: one cell more is the true extent.
    long, short = max(a, b) + max(cell), min(a, b) + min(cell)
    fill = len(xs) * cell[0] * cell[1] / (long * short)
    return float(long), _shape_word(long, long / short, fill, area)


def _shape_word(long: float, elongation: float, fill: float, area: Area) -> str:
    if elongation >= 4:
        return "line"
    if elongation >= 2:
        return "elongated"
    if long < 0.06 * max(area.w, area.h):
        return "spot"
    if fill < 0.5:
        return "irregular"
    # A disc fills pi/4 of its box; a fuller one is a patch with corners.
    return "round" if fill < 0.85 and elongation < 1.5 else "patch"


def size_words(length_px: float, mm_per_px: float | None) -> tuple[float, str]:
    """(value, text) of a length: two significant digits in mm with a scale, whole px without."""
    if mm_per_px is None:
        value = float(max(1, round(length_px)))
        return value, f"{value:.0f} px"
    value = length_px * mm_per_px
    text = f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    return value, f"{text} mm"


def colour_word(crop: NDArray[np.uint8], mask: NDArray[np.bool_]) -> str:
    """Colour name of what stands out inside `mask` (h,w) of a BGR uint8 `crop` of any size.

    Heat is wider than the defect under it, so only the tenth of the masked pixels that differs
    most from the ring around the mask is asked.
    """
    size = (crop.shape[1], crop.shape[0])
    inside = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if not inside.any():
        return "grey"
    reach = max(3, min(size) // 20) | 1
    ring = (cv2.dilate(inside.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0) & ~inside
    lab = cv2.cvtColor(crop, cv2.COLOR_BGR2LAB).astype(np.float32)
    around = np.median(lab[ring], axis=0) if ring.any() else np.median(lab.reshape(-1, 3), axis=0)
    values = lab[inside]
    differ = np.linalg.norm(values - around, axis=1)
    standing_out = crop[inside][differ >= np.quantile(differ, 0.9)]
    return name_colour(np.median(standing_out, axis=0))


def name_colour(bgr: NDArray[np.floating]) -> str:
    """One of COLOURS for a BGR value 0..255."""
    pixel = np.clip(np.asarray(bgr, np.float64), 0, 255).astype(np.uint8).reshape(1, 1, 3)
    hue, saturation, value = (int(v) for v in cv2.cvtColor(pixel, cv2.COLOR_BGR2HSV)[0, 0])
    if value < 40:
        return "black"
    if saturation < 45:
        greys = ("dark grey", "grey", "light grey", "white")
        return greys[int(np.digitize(value, (95, 165, 220)))]
    hue *= 2  # OpenCV halves the hue circle to fit a byte
    if (hue < 45 or hue >= 345) and hue >= 12 and value < 160:
        return "brown"
    bounds = (15, 45, 70, 165, 200, 260, 300, 345)
    names = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "red")
    return names[int(np.digitize(hue, bounds))]


def confidence_word(score: float, threshold: float) -> Confidence:
    """How far the score stands from its threshold, relative to it: low < 10 %, medium < 30 %."""
    if not (np.isfinite(score) and np.isfinite(threshold)) or threshold <= 0:
        return "low"
    margin = abs(score - threshold) / threshold
    return CONFIDENCES[int(np.digitize(margin, (0.1, 0.3)))]
