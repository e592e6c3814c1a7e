"""`python -m calibration.finish`: a trained encoder made fit for kinds it never saw.

Puts the stem's `LocalTap` in the place of tap a (trained on procedural kinds alone), chooses the
head's trust in the text cue and the score's weight on the known sets' validation. The last stage of
`calibration.train`; as a command, the same for weights that exist.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.corpus import Corpus, CorpusSpec, build_corpus
from calibration.datasets import NOUNS, named_sets
from calibration.entry import run_command
from calibration.resume import keep, take_up
from calibration.stage_head import fit_head, see
from calibration.stage_local import LocalSettings, attach, start_local, train_local
from calibration.stage_score import choose_score, harmonic
from calibration.stage_text import ensemble_anchors
from calibration.stage_vision import answers, gather, trusted
from calibration.training import (
    CLS_SCALE,
    Held,
    Log,
    figures_of,
    held_sets,
    memory_of,
    start_model,
)
from export.model import SpgddGpt
from export.model.clip import LocalTap
from export.model.tddf import unit
from export.model.weights import save_weights


def made_tap(corpus: Corpus, half: int, kept: Path, log: Log) -> LocalTap:
    """The tap for unseen kinds, from the corpus's procedural kinds alone; kept in a file.

    UsageError when that file is another run's.
    """
    local, settings = LocalTap(half), LocalSettings()
    made = replace(corpus)
    made.leave_out([k for k in made.by_kind if not k.startswith("kind-")])
    of = {
        "settings": [asdict(settings), half],
        "data sets": corpus.key,
        "procedural kinds": sorted(made.by_kind),
    }
    left = take_up(kept, of)
    if left is not None:
        local.load_state_dict(left)
        return local
    rows = np.sort(np.random.default_rng(42).permutation(made.rows())[:200])
    start_local(local, corpus.features[rows])
    train_local(local, made, settings, log)
    keep(kept, of, local.state_dict())
    return local


def finish(
    model: SpgddGpt,
    anchors: Tensor,
    corpus: Corpus,
    val: Held,
    out: Path,
    log: Log,
    *,
    text: bool = True,
) -> SpgddGpt:
    """The finished model; figures of it go to the log.

    anchors (2,E). `text` False: the text tower is untrained, the anchors themselves are used.
    """
    local = made_tap(corpus, model.config.vision.width // 2, out / "local.pt", log)
    model = attach(model, local, anchors)
    texts = dict.fromkeys(val, anchors)
    if text:
        texts = {name: ensemble_anchors(model, NOUNS.get(name, "object")) for name in val}
    banks = {name: (held, memory_of(model, good)) for name, (good, held) in val.items()}
    seen = [see(model, texts[n], held, [m[:1] for m in bank]) for n, (held, bank) in banks.items()]
    fit_head(model, seen, log)
    for name, (good, _) in val.items():
        features = gather(good, np.arange(len(good.kind))).features
        texts[name] = trusted(model, texts[name], features)
        log(f"trust in the text cue, {name}", trust=float(texts[name].norm(dim=-1)[1]))
    choice = choose_score(model, texts, banks, CLS_SCALE)
    log("score weight", weight=choice.weight, figures=choice.figures)
    for name, (held, memory) in banks.items():
        for shots in (0, 1, 4):
            used = [m[:shots] for m in memory] if shots else None
            text_of = texts[name] if shots else unit(texts[name])
            found: dict[str, Any] = dict(answers(model, text_of, held, used))
            found["peak"] = harmonic(found["cls"], found["peak"], choice.weight, CLS_SCALE)
            log("final", **figures_of(f"{name}/{shots}", held, found))
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """The stage alone."""
    parser = argparse.ArgumentParser(prog="python -m calibration.finish", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--start", type=Path, required=True, help="trained weights")
    parser.add_argument("--weights", type=Path, required=True, help="where to write")
    parser.add_argument("--trained", required=True, help="one honest sentence about the weights")
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/finish"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    log = Log(args.out)
    model, anchors = start_model(args.start)
    assert anchors is not None
    sets = named_sets(args.data)
    corpus = build_corpus(CorpusSpec(tuple(map(str, args.data))), args.cache, model.eval(), log)
    val = held_sets(sets, corpus, args.cache, model, log)
    model = finish(model, anchors, corpus, val, args.out, log)
    save_weights(model, args.weights, trained=args.trained)
    log(f"wrote {args.weights}")


if __name__ == "__main__":
    run_command(main)
