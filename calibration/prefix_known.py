"""The table of known kinds that travels with a prefix (`engines.known`), from its own lessons.

`python -m calibration.prefix_known --weights W.safetensors --data SET... --out W2.safetensors`

Vision and prefix stay as they are; only the table in the weights' config is new. The limit is what
KEPT of the train parts stay under when a fifth of the spots at a time is kept from the fit.
"""

import argparse
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.entry import run_command
from calibration.prefix_data import Example, cached_examples
from calibration.resume import trained_of
from engines.known import Known
from export.model.weights import load_weights, save_weights

AXES = 8  # of 192; 16 and 32 tell unseen products a little better, known ones a little worse
KEPT = 0.95
FOLDS = 5


def known_of(examples: Sequence[Example], kept: float = KEPT) -> Known:
    """The table from labelled train parts; its limit by parts kept from the fit."""
    cls = np.stack([e.cls for e in examples]).astype(np.float64)
    kinds = [e.group for e in examples]
    folds = np.array([zlib.crc32(_spot(e).encode()) % FOLDS for e in examples])
    apart = np.zeros(len(examples))
    for fold in set(folds.tolist()):
        inside = folds != fold
        if not inside.any():  # all of one spot
            inside = folds == fold
        fitted = _fit(cls[inside], [k for k, i in zip(kinds, inside, strict=True) if i])
        apart[folds == fold] = fitted.distance(cls[folds == fold])
    return replace(_fit(cls, kinds), limit=float(np.quantile(apart, kept)))


def _spot(example: Example) -> str:
    """Pictures of one place on one part are not independent."""
    return example.image.split("_crop_")[0].rsplit("/", 1)[-1]


def _fit(cls: NDArray[np.float64], kinds: Sequence[tuple[str, str]]) -> Known:
    names = sorted(set(kinds))
    which = np.array([names.index(k) for k in kinds])
    means = np.stack([cls[which == k].mean(0) for k in range(len(names))])
    # Every kind weighs the same, so that the frequent ones do not rule.
    weight = (1 / np.bincount(which))[which]
    off = (cls - means[which]) * np.sqrt(weight / weight.mean())[:, None]
    spread, axes = np.linalg.eigh(off.T @ off / len(off))
    spread, axes = np.maximum(spread[::-1], 1e-9), axes[:, ::-1]
    r = min(AXES, cls.shape[1] // 2)
    f4 = np.float32
    return Known(
        means.astype(f4), axes[:, :r].astype(f4), spread[:r].astype(f4), float(spread[r:].mean()), 0
    )


def main() -> None:
    """Put the table into a weights file."""
    parser = argparse.ArgumentParser(prog="python -m calibration.prefix_known", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="at most this many a kind and split")
    args = parser.parse_args()
    examples = [e for d in args.data for e in cached_examples(d, args.weights, args.limit)]
    known = known_of([e for e in examples if e.split == "train"])
    model = load_weights(args.weights)
    model.config = replace(
        model.config, extra={**model.config.extra, "prefix_known": known.to_text()}
    )
    trained = trained_of(args.weights, model.config.trained)
    save_weights(model, args.out, trained=trained)
    held = [e for e in examples if e.split == "val" and e.shots]
    for name in sorted({e.group[0] for e in held}):
        inside = [known.holds(e.cls) for e in held if e.group[0] == name]
        print(f"{name}: {np.mean(inside):.3f} of {len(inside)} validation parts are known")


if __name__ == "__main__":
    run_command(main)
