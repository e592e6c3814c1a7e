"""What a user would pick instead: anomalib's PatchCore, WinCLIP and EfficientAD beside nano.

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install torch==2.12.1 torchvision==0.27.1 anomalib==2.7.0 open_clip_torch
    python -m benchmarks.peers --python /tmp/peers/bin/python [--threads 2] [--rounds 7]

The peers run as published, in an environment of their own (their torchvision fits no CPU build of
our torch), with random weights: weights do not set the time. Same 240x240 picture, same threads,
one picture at a time, processes take turns. Ours is timed from uint8 tile to score, map, tokens;
theirs from the normalised float tensor, so their resize and normalisation are not counted.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Case, Report, Timing, bar_plot, measure, publish, ratio
from engines.bundle import Bundle, load_bundle
from engines.detector import Detector, Memory

HERE = Path(__file__).parent
PEERS = {
    "PatchCore ResNet-18, 4 shots": ("patchcore18", 4, 4.0),
    "PatchCore ResNet-18, 100 good parts": ("patchcore18", 100, None),
    "PatchCore Wide-ResNet-50, 4 shots": ("patchcore50", 4, 15.0),
    "EfficientAD-S": ("efficientad", 0, None),
    "WinCLIP, 4 shots": ("winclip", 4, 200.0),
}
"""Row name -> (child name, shots, the ratio issue 8 asks for)."""


class Peer:
    """A child process that does one forward pass per call."""

    def __init__(self, python: Path, name: str, threads: int, shots: int) -> None:
        command = [str(python), str(HERE / "peers_child.py"), name, str(threads), str(shots)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": ""},
        )  # fmt: skip
        line = ""
        while not line.startswith("ready "):
            line = self._answer()
        self.facts: dict[str, Any] = json.loads(line.removeprefix("ready "))

    def _answer(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self._child.args} ended; run it by hand to see why")
        return line

    def __call__(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        self._answer()

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(10)


def detector(bundle: Bundle, mode: str, threads: int, **fixed: Any) -> tuple[Detector, Any]:
    """Our whole detector with 4 references bound, and a call that inspects one tile."""
    rng = np.random.default_rng(0)
    opened = Detector.open(bundle, mode, threads=threads, **fixed)
    tiles = rng.integers(0, 256, (4, 240, 240, 3), np.uint8)
    anchors = rng.standard_normal((1, 2, bundle.manifest.embed_dim)).astype(np.float32)
    anchors /= np.linalg.norm(anchors, axis=-1, keepdims=True)
    opened.bind(None, anchors)
    tokens = opened.run(tiles, np.zeros(4, np.int64)).tokens
    opened.bind(Memory(tuple(t[None].copy() for t in tokens)), anchors)
    return opened, lambda: opened.run(tiles[:1])


def ours(bundle: Bundle, threads: int) -> dict[str, Any]:
    """Row name -> call, for what the station would run and for plain FP32."""
    name = bundle.manifest.preset
    chosen, run = detector(bundle, "bank", threads)
    found = {f"{name} as the station runs it ({chosen.precision}, {chosen.runtime})": run}
    for mode in ("bank", "position"):
        plain, run = detector(bundle, mode, threads, runtime="ort-cpu", precision="fp32")
        found[f"{name} {mode}, {plain.precision}"] = run
    return found


def rows(timings: dict[str, Timing], base: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per candidate: median, best, how many times nano is faster, what the issue asks."""
    asked = {name: peer[2] for name, peer in PEERS.items()}
    return [
        {
            "detector": name,
            "ms, median": timing.median,
            "ms, best": timing.best,
            "nano is faster by": None if name == base else ratio(timing, timings[base]),
            "asked for": asked.get(name),
            "memory": "x".join(map(str, facts.get(name, {}).get("memory", []))),
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="of the peers' environment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bundle", action="append", default=[], help="more bundles (paper)")
    options = parser.parse_args()
    cases = {}
    for ref in ["nano", *options.bundle]:
        cases |= ours(load_bundle(ref), options.threads)
    base = next(iter(cases))
    children = {
        name: Peer(options.python, child, options.threads, shots)
        for name, (child, shots, _) in PEERS.items()
    }
    cases |= children
    timings = measure([Case(n, c) for n, c in cases.items()], options.rounds, 2, 300.0)
    facts = {name: child.facts for name, child in children.items()}
    for child in children.values():
        child.close()
    medians = {name: t.median for name, t in timings.items()}
    version = next(iter(facts.values()))
    publish(
        Report(
            "peers",
            "What a user would pick instead",
            rows(timings, base, facts),
            notes=[
                f"anomalib {version['anomalib']} on torch {version['torch']}, as published, random "
                "weights, 240x240, one picture at a time, the same number of threads; processes "
                "take turns of at least 0.3 s and a ratio is the median of the rounds' ratios.",
                "Ours counts from uint8 tile to score, map and tokens; theirs from a normalised "
                "float tensor.",
            ],
            threads=options.threads,
            figures={
                "timings": {n: t.summary() for n, t in timings.items()},
                "samples": {n: t.samples for n, t in timings.items()},
                "facts": facts,
            },
            plot=bar_plot("peers", medians, "ms per picture (log)", log=True),
        )
    )


if __name__ == "__main__":
    main()
