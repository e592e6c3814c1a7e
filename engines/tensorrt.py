"""TensorRT engines from the bundle's loop-free graphs: checked, built, kept in a cache, loaded.

One module for both packages (`tensorrt_rtx`, `tensorrt`): their Python API is the same. Networks
are strongly typed: the precisions are those of the ONNX graph (FP16 or BF16 products; FP32 norms,
softmax, distances), and `_check_layers` looks at that on the parsed network before it is built.
`tensorrt_rtx` builds for a GPU that is not here; loading or inspecting an engine needs the GPU and
its driver (remaining step on a machine without one: `pytest -m gpu` where the GPU is).

An engine is a cache, keyed by graph and weights, TensorRT version, GPU (name, capability, driver)
or ahead-of-time target, precision and profile: another key is a rebuild with progress, never silent
reuse.
"""

import functools
import hashlib
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cuda import Gpu, missing
from engines.errors import EngineError

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input: smallest, usual and largest shape of the optimization profile."""
PACKAGES = ("tensorrt_rtx", "tensorrt")
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""What `tensorrt_rtx` builds for ahead of time; an older package may know fewer."""
FLOAT_SCOPES = ("project", "units", "tddf", "memory", "head", "score")
"""Scopes whose every layer must stay FP32: last projection, comparisons, distances, head."""
MAX_BATCH, MAX_REFERENCES = 64, 16
_WEIGHTS = re.compile(rb"weights[\w.-]*\.safetensors")


def tensorrt(name: str | None = None) -> Any:
    """The TensorRT module; EngineError names what is missing."""
    for package in (name,) if name else PACKAGES:
        try:
            return importlib.import_module(package)
        except ImportError:
            continue
    raise EngineError(
        "no TensorRT here: install tensorrt-rtx-cu13 (extra 'gpu'), or tensorrt from NVIDIA's index"
    )


def profile_of(network: Any, batch: int = MAX_BATCH, n: int = MAX_REFERENCES) -> Shapes:
    """Optimization profile of a parsed network: B and G from 1 to `batch`, N from 1 to `n`."""
    spans = {"B": (1, 1, batch), "G": (1, 1, batch), "N": (1, min(4, n), n), "P": (1, 1, 32)}
    shapes: Shapes = {}
    for i in range(network.num_inputs):
        port = network.get_input(i)
        dims = [
            spans[port.get_dimension_name(k)] if size < 0 else (size,) * 3
            for k, size in enumerate(tuple(port.shape))
        ]
        low, usual, high = (tuple(d[side] for d in dims) for side in range(3))
        shapes[port.name] = (low, usual, high)
    return shapes


@dataclass(frozen=True)
class NetworkReport:
    """What the parsed network is, before it is built."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: int
    norms: int
    softmaxes: int
    half_products: int


@dataclass(frozen=True)
class Built:
    """A built engine and the key under which it may be reused."""

    path: Path
    key: dict[str, Any]
    report: NetworkReport
    seconds: float
    reused: bool = False


def _monitor(trt: Any, say: Callable[[str], None]) -> Any:
    """TensorRT's progress monitor as lines of text."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            say(f"{phase_name}: {num_steps} steps")

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.steps.get(phase_name, 0)
            if total and (step + 1) % max(total // 4, 1) == 0:
                say(f"{phase_name}: {step + 1}/{total}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            say(f"{phase_name}: done")

    return Monitor()


class _Log:
    """Keeps TensorRT's complaints, so that an error is one sentence and not a stack."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    lines.append(message.strip().splitlines()[0])

        self.lines, self.logger = lines, Logger()

    def last(self) -> str:
        """The first complaint, shortened."""
        return self.lines[0][:200] if self.lines else "no reason given"


def _layer_name(layer: Any) -> str:
    return str(layer.name).lstrip("/")


def _check_layers(trt: Any, network: Any) -> NetworkReport:
    """Count norms, softmaxes and small products; every norm, softmax and distance must be FP32."""
    kinds, small = trt.LayerType, (trt.DataType.HALF, trt.DataType.BF16)
    norms = softmaxes = halves = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        first = layer.get_input(0)
        half = first is not None and first.dtype in small
        scope = _layer_name(layer).split("/")[0]
        norm, softmax = layer.type == kinds.NORMALIZATION, layer.type == kinds.SOFTMAX
        norms += norm
        softmaxes += softmax
        halves += half and layer.type in (kinds.MATRIX_MULTIPLY, kinds.CONVOLUTION)
        if half and (norm or softmax or (scope in FLOAT_SCOPES and layer.type != kinds.CAST)):
            kind = str(first.dtype).split(".")[-1]
            raise EngineError(
                f"layer {layer.name} of the parsed network is {kind}, it must be FP32"
            )
    ports = [
        {t.name: str(t.dtype).split(".")[-1] + str(tuple(t.shape)) for t in side}
        for side in (
            [network.get_input(i) for i in range(network.num_inputs)],
            [network.get_output(i) for i in range(network.num_outputs)],
        )
    ]
    return NetworkReport(ports[0], ports[1], network.num_layers, norms, softmaxes, halves)


def _parse(trt: Any, log: _Log, onnx_path: Path) -> tuple[Any, Any]:
    builder = trt.Builder(log.logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(onnx_path)):
        told = parser.get_error(0).desc() if parser.num_errors else log.last()
        raise EngineError(f"{onnx_path.name} is not for TensorRT: {str(told)[:200]}")
    return builder, network


def inspect_network(onnx_path: Path) -> NetworkReport:
    """Parse a graph and check inputs, outputs and precisions, without building."""
    trt = tensorrt()
    log = _Log(trt)
    _, network = _parse(trt, log, onnx_path)
    return _check_layers(trt, network)


def graph_sha(onnx_path: Path) -> str:
    """sha256 over the graph and the weights files it refers to (they lie beside it)."""
    raw = onnx_path.read_bytes()
    digest = hashlib.sha256(raw)
    for name in sorted(set(_WEIGHTS.findall(raw))):
        weights = onnx_path.with_name(name.decode())
        if weights.is_file():
            with weights.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def engine_key(
    onnx_path: Path, place: Gpu | str, precision: str, shapes: Shapes, trt: Any
) -> dict[str, Any]:
    """The cache key, in words: what must be equal for an engine to be used.

    place: the GPU that is here, or the target of a build ahead of time.
    """
    where = {"target": place} if isinstance(place, str) else vars(place)
    return {
        "onnx": graph_sha(onnx_path),
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "gpu": where,
        "precision": precision,
        "profile": {name: [list(s) for s in three] for name, three in shapes.items()},
    }


def _matches(out: Path, key: dict[str, Any]) -> bool:
    """True when the engine there was built under this key and is whole."""
    try:
        kept = json.loads(out.with_suffix(".key.json").read_text())
        if kept["key"] != key or kept["bytes"] != out.stat().st_size:
            return False
        with out.open("rb") as file:
            return bool(kept["sha256"] == hashlib.file_digest(file, "sha256").hexdigest())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def kept(
    onnx_path: Path, out: Path, place: Gpu | str, precision: str, package: str | None = None
) -> bool:
    """True when `out` is the engine of this graph, here: nothing has to be built."""
    trt = tensorrt(package)
    _, network = _parse(trt, _Log(trt), onnx_path)
    return _matches(out, engine_key(onnx_path, place, precision, profile_of(network), trt))


def check_target(target: str, trt: Any) -> None:
    """EngineError when this TensorRT cannot build for `target` without such a GPU."""
    known = [t for t in TARGETS if hasattr(getattr(trt, "ComputeCapability", None), t.upper())]
    if not known:
        raise EngineError(
            f"{trt.__name__} builds for the GPU that is here only: ahead of time needs tensorrt_rtx"
        )
    if target not in known:
        raise EngineError(
            f"unknown target '{target}': {trt.__name__} {trt.__version__} builds for "
            f"{', '.join(known)}"
        )


def build_engine(
    onnx_path: Path,
    out: Path,
    place: Gpu | str = "sm89",
    precision: str = "fp16",
    shapes: Shapes | None = None,
    say: Callable[[str], None] | None = None,
    package: str | None = None,
) -> Built:
    """Build `out`, for a GPU that need not be here when `place` is a target. Reused by its key.

    Raises EngineError: unknown target, unparsable graph, a layer of the wrong precision, or a
    build that fails.
    """
    trt = tensorrt(package)
    if isinstance(place, str):
        check_target(place, trt)
    start, log = time.monotonic(), _Log(trt)
    builder, network = _parse(trt, log, onnx_path)
    report = _check_layers(trt, network)
    shapes = shapes or profile_of(network)
    key = engine_key(onnx_path, place, precision, shapes, trt)
    if _matches(out, key):
        return Built(out, key, report, 0.0, reused=True)
    config = _config(trt, builder, network, place, shapes)
    if say:
        config.progress_monitor = _monitor(trt, say)
    cache = _timing_cache(trt, config, out.with_suffix(".timing"))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{onnx_path.name} could not be built for {place}: {log.last()}")
    seconds = round(time.monotonic() - start, 1)
    _write(out, bytes(plan), {"key": key, "seconds": seconds})
    if cache is not None:
        out.with_suffix(".timing").write_bytes(bytes(cache.serialize()))
    return Built(out, key, report, seconds)


def _write(out: Path, plan: bytes, facts: dict[str, Any]) -> None:
    """Engine first, key last: an engine without its key is not used."""
    out.parent.mkdir(parents=True, exist_ok=True)
    key_file = out.with_suffix(".key.json")
    key_file.unlink(missing_ok=True)
    part = out.with_suffix(".part")
    part.write_bytes(plan)
    part.replace(out)
    whole = {"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    key_file.write_text(json.dumps({**facts, **whole}, indent=1) + "\n")


def _config(trt: Any, builder: Any, network: Any, place: Gpu | str, shapes: Shapes) -> Any:
    config = builder.create_builder_config()
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:  # a query that is in memory must stay below the snap
        config.clear_flag(tf32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        port = network.get_input(i)
        if -1 in tuple(port.shape):
            profile.set_shape(port.name, *shapes[port.name])
    config.add_optimization_profile(profile)
    if hasattr(trt, "ComputeCapability"):  # tensorrt_rtx: named even where the GPU is here
        target = place if isinstance(place, str) else place.target
        capability = getattr(trt.ComputeCapability, target.upper(), trt.ComputeCapability.CURRENT)
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    return config


def _timing_cache(trt: Any, config: Any, path: Path) -> Any:
    """The timing cache beside the engine, where this TensorRT keeps one."""
    if trt.__name__ == "tensorrt_rtx":  # times its kernels on the user's GPU, at load
        return None
    try:
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        return cache if cache is not None and config.set_timing_cache(cache, False) else None
    except (AttributeError, RuntimeError):
        return None


@functools.cache
def _runtime(package: str) -> tuple[_Log, Any]:
    """One runtime per process: it must outlive every engine it has loaded."""
    trt = tensorrt(package)
    log = _Log(trt)
    return log, trt.Runtime(log.logger)


def load_engine(path: Path, package: str | None = None) -> Any:
    """Deserialize an engine. EngineError in one sentence where there is no GPU or no fit."""
    trt = tensorrt(package)
    reason = missing()
    if reason:
        raise EngineError(f"{path.name} can be built but not loaded here: {reason}")
    log, runtime = _runtime(trt.__name__)
    log.lines.clear()
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{path.name} does not fit this GPU or driver: {log.last()}; rebuild it")
    return engine


def main(argv: Sequence[str]) -> int:
    """`python -m engines.tensorrt GRAPH.onnx OUT.engine [TARGET]`: build one engine."""
    target = argv[2] if len(argv) > 2 else "sm89"
    built = build_engine(Path(argv[0]), Path(argv[1]), target, say=lambda s: print(s, flush=True))
    print(f"{built.path}: {built.seconds} s, {built.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
