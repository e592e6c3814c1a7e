"""Which parts may be given a kind: those like the ones that the prefix learned kinds from.

Beyond the paper. On products it never saw, the prefix sends most defects to a few kinds, and the
language model is as sure of them as of right ones. Their image embedding (CLS) tells: it lies far
from all that was learned, by Mahalanobis distance to the nearest kind. Such a part is called an
anomaly: what is said is then less, and true.
"""

import base64
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError


@dataclass(frozen=True)
class Known:
    """Kinds as Gaussians that share one covariance: some axes, and the rest alike in all others.

    means (K,E): CLS of each learned kind. axes (E,r), orthonormal, with variances spread (r,);
    rest: variance in every other direction. limit: the largest squared distance that is known.
    """

    means: NDArray[np.float32]
    axes: NDArray[np.float32]
    spread: NDArray[np.float32]
    rest: float
    limit: float

    def distance(self, cls: NDArray[np.floating]) -> NDArray[np.float64]:
        """Squared Mahalanobis distance (B,) of CLS (B,E) to the nearest kind."""
        off = np.asarray(cls, np.float64)[:, None] - self.means  # (B,K,E)
        along = off @ self.axes
        beside = (off**2).sum(-1) - (along**2).sum(-1)
        return np.asarray(((along**2 / self.spread).sum(-1) + beside / self.rest).min(-1))

    def holds(self, cls: NDArray[np.floating]) -> bool:
        """Whether a part with this CLS (E,) is like those that kinds were learned from."""
        return bool(self.distance(np.asarray(cls)[None])[0] <= self.limit)

    def to_text(self) -> str:
        """One line for the metadata of prefix.onnx; means and axes as FP16."""
        packed = np.concatenate([self.means.ravel(), self.axes.ravel()]).astype("<f2").tobytes()
        plain = {
            "shape": [*self.means.shape, self.axes.shape[1]],
            "spread": [float(f"{v:.4g}") for v in self.spread],
            "rest": float(f"{self.rest:.4g}"),
            "limit": float(f"{self.limit:.4g}"),
            "values": base64.b64encode(packed).decode(),
        }
        return json.dumps(plain)


def read_known(text: str) -> Known | None:
    """Known from its `to_text`, None from "". EngineError when the text is damaged."""
    if not text:
        return None
    try:
        said = json.loads(text)
        kinds, dim, axes = said["shape"]
        values = np.frombuffer(base64.b64decode(said["values"]), "<f2").astype(np.float32)
        cut = kinds * dim
        return Known(
            values[:cut].reshape(kinds, dim),
            values[cut:].reshape(dim, axes),
            np.array(said["spread"], np.float32),
            float(said["rest"]),
            float(said["limit"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the prefix's table of known kinds is damaged ({error!r})") from None
