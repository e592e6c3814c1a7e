"""What a bundle holds for GPUs, and TensorRT engines of it ahead of time.

Graphs for GPUs are loop-free (N at most 16 references: ONNX loops exclude CUDA graphs, TensorRT-RTX
does not build them) with FP16 or BF16 products. A TensorRT engine belongs to one GPU generation and
one TensorRT version, so it is a cache beside the bundle, never part of it. Engines are loaded on
the user's GPU: that step remains, `pytest -m gpu` there.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx

from engines.tensorrt import Built, build_engine
from export import compose
from export.bundle_writer import Draft, entry_of, write_engine
from export.graph import Graph, Half, WeightStore
from export.model.config import ModelConfig
from export.model.memory import MODES, Mode
from export.progress import Progress

HALVES: tuple[Half, ...] = ("fp16", "bf16")
EMULATED = ".emulated.onnx"
"""Suffix of the twin that rounds as a GPU does but runs on a CPU: for the gate, never shipped."""


def gpu_detector(store: WeightStore, config: ModelConfig, mode: Mode, half: Half) -> Graph:
    """The loop-free detector of a mode with FP16 or BF16 products, weights referred to."""
    return compose.detector(Graph(store, half=half), config, mode, flat=True)


def build_gpu(
    draft: Draft, store: WeightStore, metadata: dict[str, str], progress: Progress
) -> None:
    """FP16 and BF16 candidates of every detector, each with its emulated twin for the gate."""
    for half in HALVES:
        for mode in MODES:
            graph = gpu_detector(store, draft.config, mode, half)
            path = draft.out / f"detector.{mode}.{half}.onnx"
            write_engine(graph.model(path.stem, metadata), path)
            twin = Graph(store, half=half, emulate=True)
            twin = compose.detector(twin, draft.config, mode, flat=True)
            write_engine(twin.model(path.stem, metadata), path.with_suffix(EMULATED))
            fields = {"kind": "detector", "mode": mode, "precision": half}
            draft.engines.append(entry_of(graph, path, **fields))
            progress.step(path.name)


def drop_twins(out: Path) -> None:
    """Delete the emulated twins: the gate and the reference answers are done with them."""
    for twin in out.glob(f"*{EMULATED}"):
        twin.unlink()


def _writers(store: WeightStore, config: ModelConfig, half: Half) -> dict[str, Callable[[], Graph]]:
    """Name -> writer of every graph that gets a TensorRT engine."""

    def fresh() -> Graph:
        return Graph(store, inline=True, half=half)

    jobs: dict[str, Callable[[], Graph]] = {
        "encoder": lambda: compose.encoder(fresh(), config),
        "tddf": lambda: compose.focuser(fresh(), config),
    }
    for mode in MODES:
        jobs[f"msspmm.{mode}"] = lambda m=mode: compose.memory(fresh(), config, m, flat=True)  # type: ignore[misc]
        jobs[f"detector.{mode}"] = lambda m=mode: compose.detector(fresh(), config, m, flat=True)  # type: ignore[misc]
    return jobs


def _say_of(say: Callable[[str], None], name: str, text: str) -> None:
    say(f"{name}: {text}")


def _source(
    store: WeightStore, cache: Path, name: str, half: Half, make: Callable[[], Graph]
) -> Path:
    """The bundle's own graph where it has one (the station looks engines up by it), else a new one.

    New ones hold their weights: one file, under protobuf's 2 GB (paper's tower is 470 MB in FP32).
    """
    shipped = store.path.with_name(f"{name}.{half}.onnx")
    if shipped.is_file():
        return shipped
    source = cache / f"{name}.{half}.onnx"
    source.write_bytes(make().model(name).SerializeToString(deterministic=True))
    onnx.checker.check_model(str(source))
    return source


def build_ahead(
    store: WeightStore,
    config: ModelConfig,
    cache: Path,
    target: str,
    say: Callable[[str], None],
    only: tuple[str, ...] = (),
    half: Half = "fp16",
) -> list[Built]:
    """Build every engine (or `only` the named ones) for `target`; each is checked before it."""
    cache.mkdir(parents=True, exist_ok=True)
    built = []
    for name, make in _writers(store, config, half).items():
        if only and name not in only:
            continue
        source = _source(store, cache, name, half, make)
        named = partial(_say_of, say, name)
        done = build_engine(
            source, cache / f"{source.stem}.{target}.engine", target, half, say=named
        )
        how = "up to date" if done.reused else f"built in {done.seconds} s"
        say(
            f"{name}: {how}, {done.report.norms} norms and {done.report.softmaxes} softmaxes in "
            f"FP32, {done.report.half_products} products in {half.upper()}"
        )
        built.append(done)
    say(
        f"remaining step, on the machine with the {target} GPU: `pytest -m gpu` loads and runs them"
    )
    return built
