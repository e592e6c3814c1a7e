"""The encoder of both presets side by side: PyTorch eager, ONNX Runtime FP32 and INT8.

    python -m benchmarks.encoder [--presets paper nano] [--rounds 5] [--folder DIR] [--prepare]

`paper` runs with seeded random weights: its time does not depend on them. Making its engines takes
a minute: --folder keeps them, --prepare makes them and measures nothing.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.common import Case, Report, Timing, bar_plot, measure, publish, ratio
from engines.bundle import load_bundle
from engines.detector import Detector, Memory
from engines.session import Session
from engines.text import TextEncoder
from export import compose
from export.frames import draw
from export.gate_frames import drawn_sets, to_tile
from export.graph import Graph, WeightStore
from export.model import SpgddGpt
from export.model.weights import load_weights, save_weights
from export.quantise import SCHEMES, Scheme, quantised_encoder

U8 = NDArray[np.uint8]


def tile() -> U8:
    """One drawn part, (1,240,240,3)."""
    return to_tile(draw(1, defective=True).image)[None]


def eager(model: SpgddGpt, picture: U8) -> Case:
    """PyTorch eager, inference mode."""
    pixels = torch.from_numpy(picture)

    def call() -> None:
        with torch.inference_mode():
            model.encode_image(model.normalise(pixels))

    return Case("PyTorch eager", call)


def runtime(path: Path, name: str, picture: U8, threads: int) -> Case:
    """An encoder on ONNX Runtime."""
    session = Session(path, threads=threads)
    return Case(name, lambda: session.run({"tiles": picture}))


def int8(folder: Path, store: WeightStore, model: SpgddGpt, scheme: Scheme) -> Path:
    """An INT8 twin of the encoder alone."""
    path = folder / f"encoder.{scheme}.onnx"
    tiles = [t for s in drawn_sets() for t in s.held_out[:3]]
    onnx.save(quantised_encoder(store, scheme, tiles, model.config)[0], path)
    return path


def prepare(preset: str, folder: Path) -> None:
    """Weights and every encoder of one preset, unless they are there."""
    weights = folder / "weights.safetensors"
    if (folder / "done").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if preset == "nano":
        weights.write_bytes(load_bundle("nano").file("weights.safetensors").read_bytes())
    else:
        save_weights(SpgddGpt.create(preset), weights)
    model, store = load_weights(weights), WeightStore(weights)
    plain = folder / "encoder.onnx"
    onnx.save(compose.encoder(Graph(store), model.config).model("encoder"), plain)
    for scheme in SCHEMES:
        int8(folder, store, model, scheme)
    (folder / "done").touch()


def encoder_cases(preset: str, folder: Path, threads: int) -> list[Case]:
    """Every candidate for one preset."""
    prepare(preset, folder)
    picture = tile()
    cases = [
        eager(load_weights(folder / "weights.safetensors"), picture),
        runtime(folder / "encoder.onnx", "ONNX Runtime FP32", picture, threads),
    ]
    for scheme in SCHEMES:
        path = folder / f"encoder.{scheme}.onnx"
        cases.append(runtime(path, f"ONNX Runtime {scheme}", picture, threads))
    return cases


def detector_cases(threads: int) -> list[Case]:
    """The whole nano detector as a station runs it, one reference per mode."""
    bundle, picture = load_bundle("nano"), tile()
    anchors = TextEncoder.open(bundle).anchors("object")[None]
    cases = []
    for mode in ("position", "nearest", "bank"):
        for entry in bundle.engines("detector", mode):
            if entry.precision in ("fp16", "bf16"):
                continue  # for GPUs: benchmarks/gpu.py
            detector = Detector(bundle, entry, "ort-cpu", threads)
            detector.bind(None, anchors)
            tokens = detector.run(picture).tokens
            detector.bind(Memory(tuple(t[None] for t in tokens)), anchors)
            name = f"nano detector {mode} {entry.precision}"
            cases.append(Case(name, lambda d=detector: d.run(picture)))  # type: ignore[misc]
    return cases


def rows_of(preset: str, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """Table rows with the speed-up over eager."""
    base = timings.get("PyTorch eager")
    return [
        {"what": f"{preset} {name}", "median ms": round(t.median, 2), "best ms": round(t.best, 2),
         "times eager": round(ratio(base, t), 2) if base else None}
        for name, t in timings.items()
    ]  # fmt: skip


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["paper", "nano"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the engines here")
    parser.add_argument("--prepare", action="store_true", help="make them, measure nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = args.folder or Path(temporary)
        for preset in args.presets:
            if args.prepare:
                prepare(preset, base / preset)
                continue
            cases = encoder_cases(preset, base / preset, args.threads)
            rows += rows_of(preset, measure(cases, rounds=args.rounds, warmup=1))
    if args.prepare:
        return
    whole = measure(detector_cases(args.threads), rounds=max(args.rounds, 15))
    rows += [{**r, "what": r["what"].strip(), "times eager": None} for r in rows_of("", whole)]
    notes = [
        "'times eager' is the median over the rounds of the ratio inside one round.",
        "INT8 quantises the linear layers of the transformer only; weights have 7 bits, so that "
        "products cannot saturate on a CPU without VNNI.",
    ]
    plot = bar_plot("encoder", {r["what"]: r["median ms"] for r in rows}, "ms per tile", log=True)
    publish(Report("encoder", "Encoder and detector", rows, notes, args.threads, plot=plot))


if __name__ == "__main__":
    main()
