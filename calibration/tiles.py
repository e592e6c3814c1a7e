"""`python -m calibration.tiles`: what cutting a picture into tiles gains and costs.

Through the exported engines, bank memory of the shots' own tiles, maps stitched by maximum, score =
maximum over tiles; beside it the whole picture as one tile, same shots.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.datasets import Dataset, Sample, choose_shots, load_dataset, read_image, read_mask
from calibration.engine_run import EngineRun
from calibration.entry import run_command, write_json
from calibration.evaluate import summarise
from calibration.metrics import auroc, no_ranking
from engines.bundle import load_bundle
from engines.errors import SourceError, UsageError
from engines.preprocess import stitch, tile_boxes, to_tiles
from engines.text import TextEncoder

SIDE = 240
"""Maps and masks are compared at this size."""


def cut(
    samples: Sequence[Sample], grid: tuple[int, int], overlap: float
) -> tuple[NDArray[np.uint8], list[Any]]:
    """All tiles u8 (N*cells,240,240,3) and, per picture, its (boxes, shape)."""
    tiles, places = [], []
    for sample in samples:
        image = read_image(sample)
        boxes = tile_boxes(image.shape[:2], None, grid, overlap)
        tiles.append(to_tiles(image, boxes))
        places.append((boxes, image.shape[:2]))
    return np.concatenate(tiles), places


def judge(
    run: EngineRun, dataset: Dataset, grid: tuple[int, int], args: argparse.Namespace
) -> dict[str, Any]:
    """Figures of one grid over the runs of shots, and milliseconds per picture.

    A picture whose defect is not located counts in Image-AUC alone. SourceError when the split is
    empty or the set has fewer good parts than shots.
    """
    samples = dataset.of(args.split)
    if not samples:
        raise SourceError(
            f"{dataset.name} has no picture in the split {args.split}: name another --split"
        )
    tiles, places = cut(samples, grid, args.overlap)
    start = time.perf_counter()
    encoded = run.encode(tiles)
    spent = 1e3 * (time.perf_counter() - start) / len(samples)
    anchors = TextEncoder.open(run.bundle).anchors(dataset.noun)
    masks = []
    for sample, (_, shape) in zip(samples, places, strict=True):
        known = sample.located and not sample.normal
        mask = read_mask(sample, shape) if known else np.zeros(shape, bool)
        small = cv2.resize(mask.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        masks.append(small > 0)
    ill = np.array([not s.normal for s in samples])
    located = np.array([s.located for s in samples])
    truth = np.stack(masks)[located]
    results, cells = [], grid[0] * grid[1]
    for index in range(args.runs):
        chosen = choose_shots(dataset.of("train", normal=True), args.shots, index)
        memory, text = run.learn(run.encode(cut(chosen, grid, args.overlap)[0]), anchors)
        found = run.detect(encoded, text, memory, "bank")
        maps = []
        for i, (boxes, shape) in enumerate(places):
            part = stitch(found.maps[i * cells : (i + 1) * cells], boxes, shape, None)
            maps.append(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR))
        scores = found.scores.reshape(-1, cells).max(1)
        row = {"pixel": auroc(truth, np.stack(maps)[located]), "image": auroc(ill, scores)}
        reasons = {"pixel": no_ranking(truth, "pixel"), "image": no_ranking(ill)}
        results.append(
            {k: None if v is None else 100 * v for k, v in row.items()}
            | {"reasons": {k: v for k, v in reasons.items() if row[k] is None}}
        )
    return {"grid": list(grid), "encoder_ms": spent, **summarise(results)}


def main(argv: Sequence[str] | None = None) -> None:
    """Every grid on one set."""
    parser = argparse.ArgumentParser(prog="python -m calibration.tiles", description=__doc__)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--grids", nargs="+", default=["1x1", "2x2"])
    parser.add_argument("--overlap", type=float, default=0.1)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--split", default="val")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    run, dataset = EngineRun(load_bundle(args.bundle), args.threads), load_dataset(args.data)
    rows = []
    for text in args.grids:
        if not re.fullmatch(r"[1-9]\d?x[1-9]\d?", text):
            raise UsageError(f"--grids {text}: write ROWSxCOLUMNS, for example 2x2")
        high, wide = (int(n) for n in text.split("x"))
        rows.append(judge(run, dataset, (high, wide), args))
        print(dataset.name, text, rows[-1]["mean"], f"{rows[-1]['encoder_ms']:.0f} ms", flush=True)
        write_json(args.json, {dataset.name: rows})


if __name__ == "__main__":
    run_command(main)
