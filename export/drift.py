"""When a quantised engine fails the gate: the first layer whose output has turned away."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.model.config import ModelConfig
from export.quantise import calibration_feeds, cosines

LIMIT, TOKEN_LIMIT = 0.99, 0.9
"""A layer has drifted when the mean cosine of its tokens or its worst token falls below."""


def _layers(path: Path) -> dict[str, str]:
    """Block or tap -> its last tensor, in order, by the scope in the node names."""
    last: dict[str, str] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        scope = node.name.split("/")[0]
        if scope.startswith(("stem", "block", "tap")) and node.op_type in ("Add", "Slice", "Conv"):
            last[scope] = node.output[0]
    return last


def _outputs(path: Path, names: list[str], feeds: dict[str, Any]) -> list[NDArray[Any]]:
    import onnxruntime as ort

    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    probe = path.with_suffix(".probe.onnx")
    onnx.save(model, probe)
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(probe), options, providers=["CPUExecutionProvider"])
        return list(session.run(names, feeds))
    finally:
        probe.unlink()


def first_drift(
    plain: Path, quantised: Path, tile: NDArray[np.uint8], config: ModelConfig
) -> str:  # fmt: skip
    """A sentence: which layer turns away first on this tile, by its mean or its worst token."""
    feeds = next(calibration_feeds([tile], config))
    before, after = _layers(plain), _layers(quantised)
    names = [layer for layer in before if layer in after]
    pairs = zip(
        _outputs(plain, [before[n] for n in names], feeds),
        _outputs(quantised, [after[n] for n in names], feeds),
        strict=True,
    )
    lowest = (1.0, "none")
    for layer, (a, b) in zip(names, pairs, strict=True):
        cos = cosines(a, b)
        mean, worst = (float(cos.mean()), float(cos.min())) if cos.size else (1.0, 1.0)
        lowest = min(lowest, (worst, layer))
        if not (mean >= LIMIT and worst >= TOKEN_LIMIT):  # NaN too
            told = f"cosine per token: mean {mean:.4f}, worst {worst:.4f}"
            return f"first layer to drift: {layer} ({told})"
    return f"no layer of the tower drifts; lowest token cosine {lowest[0]:.4f} in {lowest[1]}"
