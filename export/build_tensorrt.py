"""TensorRT engines of a bundle, ahead of time, into a local cache beside it.

A TensorRT engine belongs to one GPU generation and one TensorRT version, so it is a cache and never
part of the bundle: another key is a planned rebuild with progress. Graphs are loop-free (N at most
16 references, B at most 8): TensorRT-RTX does not build the loop over memory blocks, and ONNX loops
exclude CUDA graphs. What this machine cannot do is said: engines are loaded on the user's GPU.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx

from export import compose
from export.graph import Graph, WeightStore
from export.model.config import ModelConfig
from export.model.memory import MODES
from export.tensorrt import Built, build_engine


def tensorrt_graphs(store: WeightStore, config: ModelConfig) -> dict[str, Callable[[], Graph]]:
    """Name -> writer of every graph that gets an engine: FP16 products, FP32 everything else."""

    def fresh() -> Graph:
        return Graph(store, inline=True, half=True)

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


def build_all(
    store: WeightStore,
    config: ModelConfig,
    cache: Path,
    target: str,
    say: Callable[[str], None],
    only: tuple[str, ...] = (),
) -> list[Built]:
    """Build every engine (or `only` the named ones) for `target`; each is checked before it."""
    cache.mkdir(parents=True, exist_ok=True)
    built = []
    for name, make in tensorrt_graphs(store, config).items():
        if only and name not in only:
            continue
        source = cache / f"{name}.onnx"
        # One file for protobuf's 2 GB limit: paper's tower is 470 MB in FP32.
        source.write_bytes(make().model(name).SerializeToString(deterministic=True))
        onnx.checker.check_model(str(source))
        named = partial(_say_of, say, name)
        done = build_engine(source, cache / f"{name}.{target}.engine", target, say=named)
        how = "up to date" if done.reused else f"built in {done.seconds} s"
        say(
            f"{name}: {how}, {done.report.norms} norms and {done.report.softmaxes} softmaxes in "
            f"FP32, {done.report.half_products} products in FP16"
        )
        built.append(done)
    say("next step, on the machine with the GPU: load these engines and run `pytest -m gpu`")
    return built
