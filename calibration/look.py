"""A page of heat maps: best, median and worst pictures of a set, to be looked at by a person."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.engine_run import Found, Labelled

SIDE, COLUMNS = 150, 8
SIGMA = 4.0


def heat(tile_rgb: NDArray[np.uint8], map_: NDArray[np.float32]) -> NDArray[np.uint8]:
    """BGR picture (240,240,3) with its map (sigma 4, for display alone) laid over it."""
    smooth = cv2.GaussianBlur(map_, (0, 0), SIGMA)
    colours = cv2.applyColorMap((255 * np.clip(smooth, 0, 1)).astype(np.uint8), cv2.COLORMAP_JET)
    return np.asarray(cv2.addWeighted(tile_rgb[..., ::-1], 0.6, colours, 0.4, 0), np.uint8)


def cell(labelled: Labelled, found: Found, index: int) -> NDArray[np.uint8]:
    """Picture with outlined truth above its heat and score."""
    tile = labelled.tiles[index]
    plain = np.ascontiguousarray(tile[..., ::-1])
    warm = heat(tile, found.maps[index])
    contours, _ = cv2.findContours(
        labelled.masks[index].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    cv2.drawContours(plain, contours, -1, (0, 255, 0), 1)
    cv2.drawContours(warm, contours, -1, (255, 255, 255), 1)
    pair = cv2.resize(np.vstack([plain, warm]), (SIDE, 2 * SIDE), interpolation=cv2.INTER_AREA)
    word = "bad" if labelled.defective[index] else "good"
    text = f"{word} {found.scores[index]:.3f}"
    cv2.putText(pair, text, (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 255), 1, cv2.LINE_AA)
    return np.asarray(pair, np.uint8)


def heat_page(labelled: Labelled, found: Found, out: Path) -> None:
    """Rows: defects scored highest, in the middle, lowest; good parts scored highest."""
    order = np.argsort(-found.scores, kind="stable")
    ill = [int(i) for i in order if labelled.defective[i]]
    good = [int(i) for i in order if not labelled.defective[i]]
    middle = max(0, len(ill) // 2 - COLUMNS // 2)
    groups = (ill[:COLUMNS], ill[middle : middle + COLUMNS], ill[-COLUMNS:], good[:COLUMNS])
    strips = []
    for group in groups:
        cells = [cell(labelled, found, i) for i in group]
        blank = np.full((2 * SIDE, SIDE, 3), 255, np.uint8)
        cells += [blank] * (COLUMNS - len(cells))
        strips.append(np.hstack(cells))
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), np.vstack(strips))
