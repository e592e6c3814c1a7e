"""TADD-style texts (Section IV-B) from mask and pixels: derived, and marked as derived.

A scene sentence, then one with category, count, location, shape, size and colour, in the very words
the station uses (engines.facts). A human text beside an image (`index.jsonl` key `text`, or a JSON
file of the same name with `text`) takes precedence.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.facts import GRID, Area, colour_word, extent_and_shape, location_word

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Text:
    """Scene and finding; `derived` False when a person wrote it."""

    scene: str
    finding: str
    derived: bool

    def __str__(self) -> str:
        return f"{self.scene} {self.finding}".strip()


@dataclass(frozen=True)
class LabelledPart:
    """What is known of a picture: noun, category, whether good, mask bool (H,W) of any size."""

    noun: str
    category: str
    normal: bool
    mask: NDArray[np.bool_]


def human_text(image: Path) -> Text | None:
    """The text a person wrote: `<image>.json` beside it, key `text`. None if there is none."""
    beside = image.with_suffix(".json")
    if not beside.is_file():
        return None
    body = json.loads(beside.read_text(encoding="utf-8"))
    text = body.get("text") if isinstance(body, dict) else None
    return Text("", text, derived=False) if isinstance(text, str) and text.strip() else None


def describe_part(
    image_bgr: NDArray[np.uint8],
    part: LabelledPart,
    source: Path | None = None,
) -> Text:
    """Text of one part from its picture (H,W,3) u8 and mask (H,W)."""
    written = human_text(source) if source is not None else None
    if written is not None:
        return written
    scene = scene_sentence(part.noun, image_bgr)
    if part.normal:
        return Text(scene, f"The {part.noun} shows no defect.", derived=True)
    if not part.mask.any():
        return Text(scene, f"The {part.noun} is defective ({part.category}).", derived=True)
    high, wide = part.mask.shape
    main = largest(part.mask)
    extent, shape = extent_and_shape(main, Area(0, 0, wide, high))
    colour = colour_word(image_bgr, main)
    finding = (
        f"{_count_phrase(part)} at {location_word(main)}: {shape}, "
        f"about {extent:.0f} px long, {colour}."
    )
    return Text(scene, finding, derived=True)


def scene_sentence(noun: str, image_bgr: NDArray[np.uint8]) -> str:
    """What the picture shows at large: light and colour."""
    grey = float(image_bgr.mean())
    light = "dark" if grey < 85 else "bright" if grey > 170 else "clear"
    spread = float(np.ptp(image_bgr.reshape(-1, 3).mean(0)))
    tone = "grey-scale" if spread < 4 else "colour"
    return f"A {light} {tone} picture of a {noun}."


def training_text(part: LabelledPart) -> str:
    """A short text for contrastive training, from label alone."""
    if part.normal:
        return f"A photo of a {part.noun} without any defect."
    if not part.mask.any():
        return f"A photo of a {part.noun} with a {part.category}."
    return f"A photo of a {part.noun}. {_count_phrase(part)} at {place(part.mask)}."


def place(mask: NDArray[np.bool_]) -> str:
    """Cell of the 3x3 grid with the centre of the largest region."""
    rows, cols = np.nonzero(largest(mask))
    high, wide = mask.shape
    return GRID[min(2, int(3 * rows.mean() / high))][min(2, int(3 * cols.mean() / wide))]


def count_regions(mask: NDArray[np.bool_]) -> int:
    """8-connected regions of a mask."""
    return int(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0]) - 1


def largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 8-connected region alone, bool (H,W)."""
    found = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = np.asarray(found[2])[1:, cv2.CC_STAT_AREA]
    return np.asarray(found[1] == 1 + int(np.argmax(areas)))


def _count_phrase(part: LabelledPart) -> str:
    count = count_regions(part.mask)
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    plural = "" if count == 1 else "s"
    return f"The {part.noun} has {number} {part.category} defect{plural}"
