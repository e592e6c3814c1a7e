"""`python -m calibration.leave_out`: a kind of part never seen in training.

Trains the vision stage without one set, finishes it (`calibration.finish`: trust and score weight
are chosen on the sets that remain) and judges that set at 0, 1, 2, 4 shots, five runs. In PyTorch,
with the learned anchors themselves: no text tower is trained for an experiment.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.corpus import Corpus, CorpusSpec, build_corpus, stem_features
from calibration.datasets import (
    Dataset,
    choose_shots,
    left_out,
    load_dataset,
    named_sets,
    read_image,
)
from calibration.entry import run_command, write_json
from calibration.evaluate import summarise
from calibration.finish import finish
from calibration.metrics import auroc, no_ranking
from calibration.stage_score import harmonic
from calibration.stage_vision import VisionSettings, answers, encode_features, trusted
from calibration.train import train_vision
from calibration.training import CLS_SCALE, Log, held_sets, start_model
from engines.preprocess import resize
from export.model import SpgddGpt
from export.model.tddf import unit


def shot_features(model: SpgddGpt, dataset: Dataset, count: int, run: int) -> Tensor:
    """Stem features (count,272,15,15) of a run's shots."""
    chosen = choose_shots(dataset.of("train", normal=True), count, run)
    tiles = np.stack([np.ascontiguousarray(resize(read_image(s))[..., ::-1]) for s in chosen])
    return torch.from_numpy(stem_features(model, tiles).astype(np.float32))


def judge(
    model: SpgddGpt, anchors: Tensor, dataset: Dataset, held: Corpus, shots: int, runs: int
) -> dict[str, Any]:
    """Pixel- and Image-AUC (percent) of one number of shots; labels are nearest at 60 px.

    Undefined is None with its reason. SourceError when the set has fewer good parts than shots.
    """
    weight, results = float(model.score.weight), []
    for run in range(runs if shots else 1):
        text, bank = anchors, None
        if shots:
            features = shot_features(model, dataset, shots, run)
            text = trusted(model, anchors, features)
            with torch.inference_mode():
                bank = [unit(t) for t in encode_features(model, features).taps]
        found = answers(model, text, held, bank)
        score = harmonic(found["cls"], found["peak"], weight, CLS_SCALE)
        known = held.located
        truth = held.labels[known] > 0.3
        row = {"pixel": auroc(truth, found["map"][known]), "image": auroc(~held.normal, score)}
        reasons = {"pixel": no_ranking(truth, "pixel"), "image": no_ranking(~held.normal)}
        results.append(
            {k: None if v is None else 100 * v for k, v in row.items()}
            | {"reasons": {k: v for k, v in reasons.items() if row[k] is None}}
        )
    return summarise(results)


def main(argv: Sequence[str] | None = None) -> None:
    """Train without, judge with."""
    parser = argparse.ArgumentParser(prog="python -m calibration.leave_out", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out-of", required=True, help="name of the set to leave out")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--real-share", type=float, default=0.3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/leave-out"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    sets = named_sets(args.data)
    (gone,) = left_out([args.out_of], sets)
    home = args.out / gone
    log = Log(home)
    model, _ = start_model(None)
    model.eval()
    corpus = build_corpus(CorpusSpec(tuple(map(str, args.data))), args.cache, model, log)
    val = held_sets(sets, corpus, args.cache, model, log)
    _, unseen = val.pop(gone)
    corpus.leave_out([gone])
    settings = VisionSettings(steps=args.steps, real_share=args.real_share)
    anchors = train_vision(model, corpus, val, settings, home, log)
    model = finish(model, anchors, corpus, val, home, log, text=False)
    dataset = load_dataset(sets[gone])
    body: dict[str, Any] = {
        "left_out": gone,
        "steps": args.steps,
        "weight": float(model.score.weight),
    }
    for shots in (0, 1, 2, 4):
        found = judge(model, anchors, dataset, unseen, shots, args.runs)
        body[str(shots)] = found
        log(f"{gone} never seen, {shots} shots", **found["mean"])
    write_json(home / "report.json", body)


if __name__ == "__main__":
    run_command(main)
