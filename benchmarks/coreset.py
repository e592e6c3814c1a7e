"""A bank of many good parts: what its coreset costs per frame and what it loses.

    python -m benchmarks.coreset [--data ../shared/data/mt] [--references 400] [--threads 1]
                                 [--only accuracy|cost]

Accuracy: every memory is bound to the same engine and inspects the same good and defective parts.
Cost: the same engine with a memory of 1,024 references (real ones and their mirror images), its
coresets, and no memory at all (the encoder's share). Also measured: whether INT8 products could
pay on this processor at all, before anything is built on them.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import ROOT, Case, Report, line_plot, measure, publish, ratio
from calibration.coreset import reduce_memory
from calibration.datasets import Sample, load_dataset, read_image, read_mask, small_mask
from calibration.metrics import auroc
from engines.bundle import load_bundle
from engines.detector import Detector, Memory
from engines.preprocess import resize
from engines.text import TextEncoder

SIZES = (1, 2, 4, 8, 16)
MANY = 1024
NO_GROUP = np.zeros(1, np.int64)


def tiles_of(samples: Sequence[Sample]) -> np.ndarray:
    """u8 (n,240,240,3) RGB, whole pictures."""
    return np.stack([cv2.cvtColor(resize(read_image(s)), cv2.COLOR_BGR2RGB) for s in samples])


def tokens_of(detector: Detector, tiles: np.ndarray) -> Memory:
    """Memory (1,N,225,D) of the tiles; the detector must be bound without memory."""
    answers = [detector.run(tile[None], NO_GROUP) for tile in tiles]
    return Memory(tuple(np.stack([a.tokens[s][0] for a in answers])[None] for s in range(3)))


def rows_of(memory: Memory, index: Any) -> Memory:
    return Memory(tuple(np.ascontiguousarray(t[:, index]) for t in memory.taps))


def scattered(memory: Memory, references: int, seed: int) -> Memory:
    """As many tokens as `references` have, drawn at random from all: what a coreset must beat."""
    rng = np.random.default_rng(seed)
    taps = []
    for tap in memory.taps:
        flat = tap.reshape(-1, tap.shape[-1])
        chosen = rng.choice(len(flat), references * 225, replace=False)
        taps.append(flat[chosen].reshape(1, references, 225, -1))
    return Memory(tuple(taps))


def halved(memory: Memory) -> Memory:
    """Stored as FP16, used as FP32."""
    return Memory(tuple(t.astype(np.float16).astype(np.float32) for t in memory.taps))


def eighths(memory: Memory) -> Memory:
    """Stored as INT8 with one scale a token, used as FP32, unit length again."""
    taps = []
    for tap in memory.taps:
        scale = np.abs(tap).max(axis=-1, keepdims=True) / 127
        rough = np.round(tap / scale) * scale
        taps.append((rough / np.linalg.norm(rough, axis=-1, keepdims=True)).astype(np.float32))
    return Memory(tuple(taps))


class Bench:
    """One engine, the parts it inspects, and what is known of them."""

    def __init__(self, detector: Detector, anchors: np.ndarray, samples: list[Sample]) -> None:
        self.detector, self.anchors = detector, anchors
        self.tiles = tiles_of(samples)
        self.bad = np.array([not s.normal for s in samples])
        shapes = [read_image(s).shape[:2] for s in samples]
        masked = [s.located for s in samples]
        self.masked = np.array(masked)
        self.masks = np.stack(
            [
                small_mask(read_mask(s, hw))
                for s, hw, m in zip(samples, shapes, masked, strict=True)
                if m
            ]
        )

    def accuracy(self, memory: Memory) -> dict[str, float | None]:
        self.detector.bind(memory, self.anchors)
        answers = [self.detector.run(tile[None], NO_GROUP) for tile in self.tiles]
        scores = np.array([a.score[0] for a in answers])
        maps = np.stack([a.map[0] for a in answers])[self.masked]
        return {
            "image AUC": auroc(self.bad, scores),
            "pixel AUC": auroc(self.masks.ravel(), maps.ravel()),
        }


def accuracy_rows(bench: Bench, memory: Memory) -> list[dict[str, Any]]:
    count = memory.taps[0].shape[1]
    named: dict[str, tuple[Memory, str, float | None]] = {
        f"all {count} references": (memory, "", None),
        f"all {count}, stored as FP16": (halved(memory), "", None),
        f"all {count}, stored as INT8": (eighths(memory), "", None),
        "the first 4 references": (rows_of(memory, slice(4)), "", None),
        "4 references' worth of tokens at random": (scattered(memory, 4, 0), "", None),
    }
    for size in SIZES:
        begin = time.perf_counter()
        small, covered = reduce_memory(memory, size)
        seconds = time.perf_counter() - begin
        radius = "/".join(f"{c.radius:.2f}" for c in covered)
        named[f"coreset of {size}"] = (small, radius, seconds)
    return [
        {
            "memory": name,
            **bench.accuracy(one),
            "MiB": sum(t.nbytes for t in one.taps) / 2**20,
            "radius a/b/c": radius,
            "s to choose": seconds,
        }
        for name, (one, radius, seconds) in named.items()
    ]


def cost_rows(detectors: dict[str, Detector], rounds: int) -> tuple[list[dict[str, Any]], dict]:
    """Cost per frame of each bound detector beside the one without memory."""
    tile = np.random.default_rng(1).integers(0, 256, (1, 240, 240, 3), np.uint8)
    cases = [Case(n, lambda d=d: d.run(tile, NO_GROUP)) for n, d in detectors.items()]
    timings = measure(cases, rounds, 1, 0.0)
    plain = timings["no memory"].median
    rows = [
        {
            "memory": name,
            "ms per frame": t.median,
            "of it memory, ms": t.median - plain,
            "memory / rest": (t.median - plain) / plain,
        }
        for name, t in timings.items()
    ]
    return rows, {n: t.summary() for n, t in timings.items()}


def int8_gain(threads: int) -> float:
    """How many times faster an INT8 product (U8 x S8 -> S32) is than FP32 on this processor."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    def session(kind: str, a: int, b: int, c: int) -> Any:
        ends = [
            helper.make_tensor_value_info("a", a, [900, 192]),
            helper.make_tensor_value_info("b", b, [192, 225]),
            helper.make_tensor_value_info("c", c, [900, 225]),
        ]
        node = helper.make_node(kind, ["a", "b"], ["c"])
        graph = helper.make_graph([node], "g", ends[:2], ends[2:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        return ort.InferenceSession(model.SerializeToString(), options)

    rng = np.random.default_rng(0)
    f, u, s, i = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32
    plain, small = session("MatMul", f, f, f), session("MatMulInteger", u, s, i)
    wide = {"a": rng.random((900, 192), np.float32), "b": rng.random((192, 225), np.float32)}
    narrow = {
        "a": rng.integers(0, 128, (900, 192), np.uint8),
        "b": rng.integers(-64, 64, (192, 225), np.int8),
    }
    timings = measure(
        [Case("f", lambda: plain.run(None, wide)), Case("i", lambda: small.run(None, narrow))]
    )
    return ratio(timings["f"], timings["i"])


def mirrored(detector: Detector, memory: Memory, tiles: np.ndarray) -> Memory:
    """MANY references: the real ones and their mirror images (cost only, not accuracy)."""
    flips = (tiles[:, ::-1], tiles[:, :, ::-1])
    more = [tokens_of(detector, np.ascontiguousarray(f)) for f in flips]
    taps = zip(memory.taps, *(m.taps for m in more), strict=True)
    return Memory(tuple(np.concatenate(t, axis=1)[:, :MANY] for t in taps))


def costs_of(
    many: Memory, opened: Callable[[], Detector], anchors: np.ndarray, rounds: int
) -> tuple[list[dict[str, Any]], dict]:
    """Cost per frame without memory, with all of it, with its coresets."""
    memories: dict[str, Memory | None] = {"no memory": None, f"all {many.taps[0].shape[1]}": many}
    memories |= {f"coreset of {n}": reduce_memory(many, n)[0] for n in (4, 8, 16)}
    bound = {}
    for name, memory in memories.items():
        bound[name] = opened()
        bound[name].bind(memory, anchors)
    return cost_rows(bound, rounds)


def plot_of(accuracy: list[dict[str, Any]]) -> str | None:
    """AUC over the size of the coreset."""
    by_name = {row["memory"]: row for row in accuracy}
    lines = {
        key: [(float(size), float(by_name[f"coreset of {size}"][key])) for size in SIZES]
        for key in ("image AUC", "pixel AUC")
    }
    return line_plot("coreset", lines, "references' worth of tokens kept", "AUC", log=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mt")
    parser.add_argument("--references", type=int, default=400)
    parser.add_argument("--parts", type=int, default=60, help="good parts to inspect")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("accuracy", "cost"), help="the other half as it stands")
    options = parser.parse_args()
    data, bundle = load_dataset(options.data), load_bundle("nano")

    def opened() -> Detector:
        return Detector.open(bundle, "bank", threads=options.threads)

    detector, anchors = opened(), TextEncoder.open(bundle).anchors(data.noun)[None]
    normals = data.of("train", True)[: options.references]
    detector.bind(None, anchors)
    tiles = tiles_of(normals)
    memory = tokens_of(detector, tiles)
    told = f"{detector.entry.file} on {detector.runtime}; weights: {bundle.manifest.trained}"
    if options.only != "cost":
        good, bad = data.of("val", True)[: options.parts], data.of("val", False)
        kept = f"{len(normals)} good parts of `{data.name}` enrolled; {len(good)} other good and "
        kept += f"{len(bad)} defective ones inspected; {told}."
        report_accuracy(options, Bench(detector, anchors, [*good, *bad]), memory, kept)
    if options.only != "accuracy":
        many = mirrored(detector, memory, tiles)
        report_cost(options, costs_of(many, opened, anchors, options.rounds), told)


def report_accuracy(options: argparse.Namespace, bench: Bench, memory: Memory, what: str) -> None:
    """Inspect with every memory; publish."""
    rows = accuracy_rows(bench, memory)
    notes = [
        what,
        "Radius: the largest distance (0 to 2) of a dropped token to a kept one, per tap.",
    ]
    title = "A bank of many good parts: accuracy of its coreset"
    publish(Report("coreset", title, rows, notes, options.threads, {}, plot_of(rows)))


def report_cost(
    options: argparse.Namespace, found: tuple[list[dict[str, Any]], dict], told: str
) -> None:
    """Publish what a frame costs, and what an INT8 memory could save at most."""
    costs, timings = found
    gain = int8_gain(options.threads)
    share = next(r["memory / rest"] for r in costs if r["memory"] == "coreset of 4")
    bound = max(0.0, share / (1 + share) * (1 - 1 / gain))
    notes = [
        f"{told}. The promise: `bank` through its coreset costs less than the encoder.",
        f"INT8 memory: an INT8 product of this size is {gain:.2f}x an FP32 one here. Behind a "
        f"coreset of 4 that could save at most {bound:.0%} of a frame, before quantising queries "
        "and exact re-ranking: not built.",
    ]
    title = f"A bank of {MANY} good parts: cost per frame"
    figures = {"timings": timings, "int8_gain": gain}
    publish(Report("coreset.cost", title, costs, notes, options.threads, figures))


if __name__ == "__main__":
    main()
