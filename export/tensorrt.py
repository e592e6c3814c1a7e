"""TensorRT engines from the graphs, ahead of time: `tensorrt_rtx` needs no GPU to build.

One module for both packages (`tensorrt_rtx`, `tensorrt`): the Python API is the same. Networks are
strongly typed: the precisions are those of the ONNX graph (FP16 products, FP32 norms, softmax and
distances), and `inspect_network` checks that on the parsed network before it is built. Loading or
inspecting a built engine needs a GPU and its driver.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from engines.errors import EngineError

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Per input: smallest, usual and largest shape of the optimization profile."""
PACKAGES = ("tensorrt_rtx", "tensorrt")
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm120")
FLOAT_SCOPES = ("project", "units", "tddf", "memory", "head", "score")
"""Scopes whose every layer must stay FP32: last projection, comparisons, distances, head."""
MAX_BATCH, MAX_REFERENCES = 8, 16


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


def profile_of(model: onnx.ModelProto, batch: int = MAX_BATCH, n: int = MAX_REFERENCES) -> Shapes:
    """Optimization profile: B and G from 1 to `batch`, N from 1 to `n` references."""
    low = {"B": 1, "N": 1, "G": 1, "P": 1, "T": 77}
    usual = {"B": 1, "N": min(4, n), "G": 1, "P": 1, "T": 77}
    high = {"B": batch, "N": n, "G": batch, "P": 32, "T": 77}
    shapes: Shapes = {}
    for port in model.graph.input:
        dims = [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]

        def fixed(at: dict[str, int], dims: list[Any] = dims) -> tuple[int, ...]:
            return tuple(at[d] if isinstance(d, str) else int(d) for d in dims)

        shapes[port.name] = (fixed(low), fixed(usual), fixed(high))
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
    key: str
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
    """Count norms, softmaxes and FP16 products; every norm, softmax and distance must be FP32."""
    kinds = trt.LayerType
    norms = softmaxes = halves = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        first = layer.get_input(0)
        half = first is not None and first.dtype == trt.DataType.HALF
        scope = _layer_name(layer).split("/")[0]
        norm, softmax = layer.type == kinds.NORMALIZATION, layer.type == kinds.SOFTMAX
        norms += norm
        softmaxes += softmax
        halves += half and layer.type in (kinds.MATRIX_MULTIPLY, kinds.CONVOLUTION)
        if half and (norm or softmax or (scope in FLOAT_SCOPES and layer.type != kinds.CAST)):
            raise EngineError(f"layer {layer.name} of the parsed network is FP16, it must be FP32")
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


def engine_key(onnx_path: Path, target: str, shapes: Shapes, trt: Any) -> str:
    """Cache key: graph, TensorRT version, GPU target, profile. Another key is a planned rebuild."""
    parts = [hashlib.sha256(onnx_path.read_bytes()).hexdigest(), trt.__name__, trt.__version__]
    digest = hashlib.sha256(json.dumps([*parts, target, shapes], sort_keys=True).encode())
    return digest.hexdigest()


def build_engine(
    onnx_path: Path,
    out: Path,
    target: str = "sm89",
    shapes: Shapes | None = None,
    say: Callable[[str], None] | None = None,
) -> Built:
    """Build `out` for a GPU that need not be here. Reused when its key is unchanged.

    Raises EngineError: unknown target, unparsable graph, a layer of the wrong precision, or a
    build that fails.
    """
    import time

    trt = tensorrt()
    if target not in TARGETS:
        raise EngineError(f"unknown target '{target}': use one of {', '.join(TARGETS)}")
    shapes = shapes or profile_of(onnx.load(onnx_path, load_external_data=False))
    key, key_file = engine_key(onnx_path, target, shapes, trt), out.with_suffix(".key.json")
    start, log = time.monotonic(), _Log(trt)
    builder, network = _parse(trt, log, onnx_path)
    report = _check_layers(trt, network)
    if out.is_file() and key_file.is_file() and json.loads(key_file.read_text())["key"] == key:
        return Built(out, key, report, 0.0, reused=True)
    config = _config(trt, builder, network, target, shapes)
    if say:
        config.progress_monitor = _monitor(trt, say)
    cache = _timing_cache(trt, config, out.with_suffix(".timing"))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{onnx_path.name} could not be built for {target}: {log.last()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(bytes(plan))
    if cache is not None:
        out.with_suffix(".timing").write_bytes(bytes(cache.serialize()))
    seconds = round(time.monotonic() - start, 1)
    facts = {"key": key, "target": target, "tensorrt": trt.__version__, "seconds": seconds}
    key_file.write_text(json.dumps(facts, indent=1) + "\n")
    return Built(out, key, report, seconds)


def _config(trt: Any, builder: Any, network: Any, target: str, shapes: Shapes) -> Any:
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
    if hasattr(config, "set_compute_capability"):
        capability = getattr(trt.ComputeCapability, target.upper())
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


def load_engine(path: Path) -> Any:
    """Deserialize an engine. EngineError in one sentence where there is no GPU or no fit."""
    trt = tensorrt()
    if not Path("/dev/nvidiactl").exists():
        raise EngineError(f"{path.name} was built here but loading it needs an NVIDIA GPU, driver")
    log = _Log(trt)
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{path.name} does not fit this GPU or driver: {log.last()}; rebuild it")
    return engine


def main(argv: Sequence[str]) -> int:
    """`python -m export.tensorrt GRAPH.onnx OUT.engine [TARGET]`: build one engine."""
    target = argv[2] if len(argv) > 2 else "sm89"
    built = build_engine(Path(argv[0]), Path(argv[1]), target, say=lambda s: print(s, flush=True))
    print(f"{built.path}: {built.seconds} s, {built.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
