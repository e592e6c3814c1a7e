"""When a quantised engine fails the gate: the first layer whose output has turned away."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.model.config import ModelConfig
from export.quantise import calibration_feeds

LIMIT = 0.99
"""Mean cosine per token below which a layer counts as drifted."""


def _layers(model: onnx.ModelProto) -> list[str]:
    """Last tensor of each block and tap, in order, by the scope in the node names."""
    last: dict[str, str] = {}
    for node in model.graph.node:
        scope = node.name.split("/")[0]
        if scope.startswith(("stem", "block", "tap")) and node.op_type in ("Add", "Slice", "Conv"):
            last[scope] = node.output[0]
    return list(last.values())


def _outputs(path: Path, names: list[str], feeds: dict[str, Any]) -> list[NDArray[Any]]:
    import onnxruntime as ort

    model = onnx.load(path, load_external_data=False)
    present = {o for n in model.graph.node for o in n.output}
    for name in names:
        if name in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    probe = path.with_suffix(".probe.onnx")
    onnx.save(model, probe)
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(probe), options, providers=["CPUExecutionProvider"])
        return list(session.run([n for n in names if n in present], feeds))
    finally:
        probe.unlink()


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean cosine over the last axis; rows that are zero on both sides agree."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both = np.maximum(np.abs(a).max(-1), np.abs(b).max(-1)) > 1e-6
    return float(np.mean(((a * b).sum(-1)[both]) / np.maximum(lengths[both], 1e-12)))


def first_drift(
    plain: Path, quantised: Path, tile: NDArray[np.uint8], config: ModelConfig
) -> str:  # fmt: skip
    """A sentence: which layer falls below LIMIT first, and its mean cosine."""
    feeds = next(calibration_feeds([tile], config))
    there = {o for n in onnx.load(quantised, load_external_data=False).graph.node for o in n.output}
    reference = onnx.load(plain, load_external_data=False)
    names = [n for n in _layers(reference) if n in there]
    pairs = zip(_outputs(plain, names, feeds), _outputs(quantised, names, feeds), strict=True)
    worst = (1.0, "none")
    for name, (a, b) in zip(names, pairs, strict=True):
        cos = _cosine(a, b)
        worst = min(worst, (cos, name.split("/")[0]))
        if cos < LIMIT:
            return f"first layer to drift: {name.split('/')[0]} (mean cosine {cos:.4f})"
    return f"no single layer below {LIMIT}; lowest {worst[1]} (mean cosine {worst[0]:.4f})"
