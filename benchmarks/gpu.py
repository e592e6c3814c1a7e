"""Images per second on an NVIDIA GPU at batch 1, 8, 64, beside PyTorch compiled in BF16.

    python -m benchmarks.gpu [--presets nano paper] [--batches 1 8 64]

The whole detector (tiles from host memory in, map and score in host memory out), mode nearest,
four references. Ceilings are measured in the same run: the BF16 matrix rate of one large product,
and the rate at which device memory is copied. Not run where it was written: that machine has no
GPU; it then says why and ends.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Case, Report, measure, publish, ratio
from engines.bundle import Bundle, EngineEntry, Manifest, load_bundle
from engines.cuda import gpu_here, missing
from engines.detector import Detector, Memory
from engines.errors import EngineError
from engines.preprocess import SPEC, spec_hash
from engines.session import runtimes
from export.build_gpu import gpu_detector
from export.compose import detector
from export.frames import draw
from export.gate_frames import to_tile
from export.graph import Graph, WeightStore
from export.model import SpgddGpt
from export.model.config import PATCHES, ModelConfig
from export.model.weights import load_weights, save_weights

REFERENCES = 4
PEER = "PyTorch compiled BF16"


def flops(config: ModelConfig) -> float:
    """Multiply-adds times two of the transformer for one tile (the stem is not counted)."""
    w, t = config.vision.width, PATCHES + 1
    hidden = config.vision.mlp_ratio * w
    attention = 2 * t * t * w
    block = t * w * (3 * w + w + 2 * hidden) + attention
    return 2.0 * (config.vision.layers * block + 3 * (attention + t * w * w))


def matrix_ceiling(size: int = 8192, rounds: int = 20) -> float:
    """BF16 TFLOP/s of one large product."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / _seconds(lambda: a @ b, rounds) / 1e12


def memory_ceiling(gib: int = 1, rounds: int = 20) -> float:
    """GB/s of a copy on the device, read and written bytes counted."""
    a = torch.empty(gib << 30, device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.numel() / _seconds(lambda: b.copy_(a), rounds) / 1e9


def _seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call on the device, by CUDA events."""
    times = []
    for turn in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if turn >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return float(np.median(times))


def bundle_for(preset: str, folder: Path) -> Bundle:
    """FP32, FP16 and BF16 detectors of mode nearest; `paper` with seeded random weights."""
    weights = folder / "weights.safetensors"
    if preset == "nano":
        weights.write_bytes(load_bundle("nano").file(weights.name).read_bytes())
    else:
        save_weights(SpgddGpt.create(preset), weights)
    store = WeightStore(weights)
    config = ModelConfig.from_json(store.metadata["config"])
    graphs = {"fp32": detector(Graph(store), config, "nearest")}
    graphs |= {h: gpu_detector(store, config, "nearest", h) for h in ("fp16", "bf16")}  # type: ignore[arg-type]
    entries = []
    for precision, graph in graphs.items():
        path = folder / f"detector.nearest.{precision}.onnx"
        path.write_bytes(graph.model("detector").SerializeToString())
        entries.append(
            EngineEntry(
                file=path.name,
                sha256=path.name,
                kind="detector",
                mode="nearest",
                precision=precision,
                opset=20,
                inputs=tuple(graph.ports[0]),
                outputs=tuple(graph.ports[1]),
            )
        )
    manifest = Manifest(
        preset=preset, trained="benchmark", config={}, embed_dim=config.embed_dim,
        tap_dims=config.tap_dims, llm_hidden=config.llm_hidden, source={},
        preprocess=spec_hash(), preprocess_spec=dict(SPEC), prompts="", seal="",
        files={weights.name: "", **{e.file: "" for e in entries}}, engines=tuple(entries),
    )  # fmt: skip
    return Bundle(folder, manifest, "benchmark")


def engines(bundle: Bundle, tiles: Any, memory: Memory, anchors: Any) -> list[Case]:
    """Every engine on every GPU runtime that can run here."""
    cases = []
    for info in [r for r in runtimes() if r.available]:
        if not info.name.startswith(("tensorrt", "ort-cuda")):
            continue
        for entry in bundle.engines("detector"):
            if entry.precision not in info.precisions:
                continue
            try:
                opened = Detector(bundle, entry, info.name)
                opened.bind(memory, anchors)
                opened.run(tiles)
            except EngineError as error:
                print(f"{info.name} {entry.precision}: {error}")
                continue
            name = f"{info.name} {entry.precision}"
            cases.append(Case(name, lambda d=opened: d.run(tiles), items=len(tiles)))  # type: ignore[misc]
    return cases


def compiled(model: SpgddGpt, tiles: Any, memory: Memory, anchors: Any) -> Case:
    """The tower in BF16 (autocast keeps norms in FP32), compiled; the rest in FP32 as we do."""
    model = model.cuda().eval()
    taps = [torch.from_numpy(m).cuda() for m in memory.taps]
    text = torch.from_numpy(anchors).cuda()
    group = torch.zeros(len(tiles), dtype=torch.long, device="cuda")

    @torch.compile(mode="max-autotune")
    def tower(pixels: torch.Tensor) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return model.encode_image(pixels)

    def call() -> None:
        with torch.no_grad():
            encoded = tower(model.normalise(torch.from_numpy(tiles).cuda()))
            exact = type(encoded)(encoded.cls.float(), tuple(t.float() for t in encoded.taps))
            answer = model.answer(exact, text, taps, "nearest", group)
            answer.map.cpu(), answer.score.cpu()

    call()
    return Case(PEER, call, items=len(tiles))


def rows_of(preset: str, batch: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Table rows of one preset and batch size."""
    bundle = bundle_for(preset, folder)
    model = load_weights(bundle.file("weights.safetensors"))
    tiles = np.stack([to_tile(draw(i % 6, defective=i % 2 == 1).image) for i in range(batch)])
    rng = np.random.default_rng(0)
    memory = Memory(tuple(_unit(rng, d) for d in model.config.tap_dims))
    anchors = rng.normal(size=(1, 2, model.config.embed_dim)).astype(np.float32)
    work = flops(model.config)
    cases = [*engines(bundle, tiles, memory, anchors), compiled(model, tiles, memory, anchors)]
    timings = measure(cases, rounds=rounds, warmup=5)
    return [
        {
            "preset": preset, "batch": batch, "engine": name,
            "images/s": round(1e3 / t.median, 1), "ms per image": round(t.median, 3),
            "times compiled": round(ratio(timings[PEER], t), 2),
            "TFLOP/s": round(work / t.median / 1e9, 1),
        }
        for name, t in timings.items()
    ]  # fmt: skip


def _unit(rng: np.random.Generator, dim: int) -> Any:
    x = rng.normal(size=(1, REFERENCES, PATCHES, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def main() -> None:
    """Measure and publish, or say why it cannot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--presets", nargs="+", default=["nano", "paper"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    reason = missing() or ("" if torch.cuda.is_available() else "this torch has no CUDA")
    if reason:
        print(f"benchmarks.gpu needs a GPU: {reason}")
        return
    card, rows = gpu_here(), []
    for preset in args.presets:
        for batch in args.batches:
            with tempfile.TemporaryDirectory() as folder:
                rows += rows_of(preset, batch, Path(folder), args.rounds)
    matrix, memory = matrix_ceiling(), memory_ceiling()
    notes = [
        f"{card.name}, driver {card.driver}; measured ceilings: {matrix:.0f} TFLOP/s BF16 matrix "
        f"product, {memory:.0f} GB/s device copy.",
        "Whole detector, mode nearest, 4 references, tiles from and answers to host memory. "
        "TFLOP/s counts the transformer's products only.",
    ]
    publish(Report("gpu", "NVIDIA GPU", rows, notes, figures={"matrix": matrix, "copy": memory}))


if __name__ == "__main__":
    main()
