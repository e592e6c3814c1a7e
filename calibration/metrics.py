"""Exact metrics: AUROC with ties, AUPRO to a false-positive limit. Undefined is None."""

import cv2
import numpy as np
from numpy.typing import NDArray

FPR_LIMIT = 0.3


def auroc(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float | None:
    """P(score of a positive > score of a negative), ties half. None when a class is missing.

    labels bool (n,), scores (n,). Raises ValueError on scores that are not numbers.
    """
    labels = np.asarray(labels).ravel().astype(bool)
    scores = np.asarray(scores).ravel()
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
    positives = int(labels.sum())
    negatives = labels.size - positives
    if not positives or not negatives:
        return None
    _, hits, misses = _thresholds(labels, scores)
    true = np.concatenate([[0], hits]).astype(np.float64)
    false = np.concatenate([[0], misses]).astype(np.float64)
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)
    return float(area / positives / negatives)


def no_ranking(flags: NDArray[np.bool_], what: str = "picture") -> str:
    """Why `auroc` of flags of any shape (True = defective) is undefined, in a few words."""
    if not flags.size:
        return f"no {what} is judged"
    missing = "good" if np.asarray(flags).all() else "defective"
    return f"no {missing} {what} is judged"


def _thresholds(
    labels: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores falling, with true and false positives at or above each."""
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], labels[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    hits = np.cumsum(hit)[ends]
    return ranked[ends], hits, ends + 1 - hits


def aupro(
    masks: NDArray[np.bool_], maps: NDArray[np.floating], limit: float = FPR_LIMIT
) -> float | None:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by it.

    masks bool (n,H,W), maps (n,H,W). Regions are 8-connected. The curve is a step-free polyline
    through every distinct score and interpolated at the limit. None without a region or a good
    pixel.
    """
    masks = np.asarray(masks, bool)
    weights, regions = _region_weights(masks)
    good = int((~masks).sum())
    if not regions or not good:
        return None
    scores = np.asarray(maps, np.float64).ravel()
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    overlap = np.cumsum(weights[order])[ends] / regions
    false = np.cumsum(~masks.ravel()[order])[ends] / good
    return _area_to(np.append(0.0, false), np.append(0.0, overlap), limit) / limit


def _region_weights(masks: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Per pixel 1/(size of its region), 0 outside; and the number of regions."""
    weights = np.zeros(masks.shape, np.float64)
    regions = 0
    for mask, weight in zip(masks, weights, strict=True):
        if not mask.any():
            continue
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        sizes = np.bincount(parts.ravel(), minlength=count).astype(np.float64)
        inverse = 1.0 / np.maximum(sizes, 1)
        inverse[0] = 0.0
        weight[:] = inverse[parts]
        regions += count - 1
    return weights.ravel(), regions


def _area_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoid area of the polyline (x rising) from 0 to `limit`."""
    inside = x <= limit
    at = float(np.interp(limit, x, y))
    xs, ys = np.append(x[inside], limit), np.append(y[inside], at)
    return float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2))


def mean_and_deviation(values: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample deviation over runs, of those that are defined."""
    known = [v for v in values if v is not None]
    if not known:
        return None, None
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return float(np.mean(known)), spread
