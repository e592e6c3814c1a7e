"""TADD-style texts (Section IV-B) from mask and pixels: derived, and marked as derived.

A scene sentence, then one with category, count, location, shape, size and colour, in the very words
the station uses (engines.facts). A human text of an image (`index.jsonl` key `text`, or a JSON file
of the same name with `text`) takes precedence: `calibration.corpus` keeps one text of each picture
with the mark whether a person wrote it, `calibration.stage_text` trains on them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.datasets import Sample
from engines.errors import SourceError
from engines.facts import GRID, Area, colour_word, extent_and_shape, location_word

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Text:
    """Scene and finding, both derived; what a person wrote is a plain string (`own_text`)."""

    scene: str
    finding: str

    def __str__(self) -> str:
        return f"{self.scene} {self.finding}".strip()


@dataclass(frozen=True)
class LabelledPart:
    """What is known of a picture: noun, category, whether good, mask bool (H,W) of any size."""

    noun: str
    category: str
    normal: bool
    mask: NDArray[np.bool_]


def own_text(sample: Sample) -> str | None:
    """What a person wrote of a part: in the index, else in a JSON file beside the image; or None.

    SourceError when that file is no JSON.
    """
    return _said(sample.text) or human_text(sample.image)


def human_text(image: Path) -> str | None:
    """The key `text` of `<image>.json`; None without such a file or key. SourceError: no JSON."""
    beside = image.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        body = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{beside} is no JSON file ({error}): correct or remove it") from error
    return _said(body.get("text")) if isinstance(body, dict) else None


def _said(text: object) -> str | None:
    return " ".join(text.split()) or None if isinstance(text, str) else None


def describe_part(image_bgr: NDArray[np.uint8], part: LabelledPart) -> Text:
    """Derived text of one part from its picture (H,W,3) u8 and mask (H,W)."""
    scene = scene_sentence(part.noun, image_bgr)
    if part.normal:
        return Text(scene, f"The {part.noun} shows no defect.")
    if not part.mask.any():
        return Text(scene, f"The {part.noun} is defective ({part.category}).")
    high, wide = part.mask.shape
    main = largest(part.mask)
    extent, shape = extent_and_shape(main, Area(0, 0, wide, high))
    colour = colour_word(image_bgr, main)
    finding = (
        f"{_count_phrase(part)} at {location_word(main)}: {shape}, "
        f"about {extent:.0f} px long, {colour}."
    )
    return Text(scene, finding)


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
