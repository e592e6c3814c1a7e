"""The adapter's prefix: image, anchors and map of a part as 21 embeddings of the language model.

`prefix.onnx` of the bundle: cls (B,E), anchors (B,2,E), f_out (B,15,15,3) in,
prefix (B,21,H) out. Its metadata says whether it is trained, and for which model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.describer import DescribeRequest
from engines.errors import EngineError
from engines.known import read_known

LENGTH = 21


class PrefixEncoder:
    """prefix.onnx on one CPU thread. Raises EngineError when it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise EngineError("onnxruntime is not installed; install the extra `cpu`") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has no common base class of its errors
            reason = str(error).split("\n", 1)[0][:160]
            raise EngineError(f"{path}: the prefix cannot be loaded ({reason})") from None
        meta = self._session.get_modelmeta().custom_metadata_map
        self.trained = meta.get("trained") == "true"
        self.llm = meta.get("llm", "")  # file name of the model it was trained through, "" = any
        self.known = read_known(meta.get("known", ""))  # parts outside of it get no kind
        self.hidden = int(self._session.get_outputs()[0].shape[-1])

    def __call__(self, requests: Sequence[DescribeRequest]) -> NDArray[np.float32]:
        """Embeddings f32 (B,21,H) of requests that all carry cls, anchors and f_out."""
        feeds = {
            name: np.stack([np.asarray(getattr(r, name), np.float32) for r in requests])
            for name in ("cls", "anchors", "f_out")
        }
        names = [i.name for i in self._session.get_inputs()]
        (prefix,) = self._session.run(None, {n: feeds[n] for n in names})
        return np.asarray(prefix, np.float32)


def fits(request: DescribeRequest) -> bool:
    """True when a request carries what the prefix is made from."""
    return not (request.cls is None or request.anchors is None or request.f_out is None)


def open_prefix(path: str | None, hidden: int, model: str) -> tuple[PrefixEncoder | None, str]:
    """The trained prefix for a model of this hidden size, or None and the reason.

    Raises EngineError when a prefix is there but was made for another hidden size.
    """
    if path is None:
        return None, "the bundle names no prefix; the findings are given as text alone"
    prefix = PrefixEncoder(Path(path))
    if prefix.hidden != hidden:
        raise EngineError(
            f"{path}: the prefix makes embeddings of {prefix.hidden} values, the model {model} "
            f"takes {hidden}; build the bundle for this model"
        )
    if not prefix.trained:
        return None, "the bundle's prefix is not trained; the findings are given as text alone"
    if prefix.llm and _family(prefix.llm) != _family(model):
        return None, (
            f"the bundle's prefix was trained for {prefix.llm}, not for {model}; "
            "the findings are given as text alone"
        )
    return prefix, ""


def _family(name: str) -> str:
    """A model's name without its quantization: `A-135M.Q4_1.gguf` and `A-135M.Q8_0` are one."""
    return name.split(".", 1)[0].lower()
