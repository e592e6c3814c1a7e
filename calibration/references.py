"""The enrolled images under references/: written once, lossless, verified by pixel hash."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.recipe import Recipe, Reference, cut
from engines.errors import RecipeError
from engines.preprocess import tile_boxes

Frames = Iterable[tuple[str, NDArray[np.uint8]]]
# (stage, done, total); total is 0 while unknown.
Progress = Callable[[str, int, int], None]


def collect(
    frames: Frames,
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
    known: Iterable[Reference] = (),
) -> tuple[list[Reference], list[str]]:
    """Write the region of each distinct BGR frame to folder/references; (kept, duplicates)."""
    where = folder / "references"
    where.mkdir(parents=True, exist_ok=True)
    seen = {reference.sha256 for reference in known}
    offset = len(seen)
    kept: list[Reference] = []
    duplicates: list[str] = []
    for index, (name, frame) in enumerate(frames):
        region = np.ascontiguousarray(cut(frame, recipe.region))
        _check_tiles(recipe, name, region.shape)
        digest = pixels_sha(region)
        if digest in seen:
            duplicates.append(name)
            continue
        seen.add(digest)
        file = f"{offset + len(kept):04d}.png"
        if not cv2.imwrite(str(where / file), region, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise RecipeError(f"{where / file} cannot be written: is the disk full or read-only?")
        shape = (frame.shape[0], frame.shape[1])
        kept.append(Reference(file=file, name=name, sha256=digest, frame=shape))
        tell(progress, "reading good parts", index + 1, 0)
    return kept, duplicates


def _check_tiles(recipe: Recipe, name: str, shape: tuple[int, ...]) -> None:
    """RecipeError when a region of this shape cannot be cut into the recipe's tiles."""
    try:
        tile_boxes((shape[0], shape[1]), None, recipe.tiles, recipe.overlap)
    except ValueError as error:
        raise RecipeError(f"{name}: {error}: give fewer --tiles or a larger --region") from error


def read(folder: Path, reference: Reference) -> NDArray[np.uint8]:
    """The region (H,W,3) u8 BGR of one reference; RecipeError when it is gone or damaged."""
    path = folder / "references" / reference.file
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise RecipeError(f"{path} is missing or damaged: enrol the recipe again")
    return np.asarray(image, np.uint8)


def verify(folder: Path, references: Iterable[Reference]) -> None:
    """RecipeError names the first reference whose pixels are not those enrolled."""
    for reference in references:
        if pixels_sha(read(folder, reference)) != reference.sha256:
            path = folder / "references" / reference.file
            raise RecipeError(f"{path} is not the image that was enrolled: enrol the recipe again")


def pixels_sha(image: NDArray[np.uint8]) -> str:
    """Hex sha256 of shape and pixels: frames equal in content are one part."""
    head = f"{image.shape}{image.dtype}".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    """Call `progress` if there is one."""
    if progress is not None:
        progress(stage, done, total)
