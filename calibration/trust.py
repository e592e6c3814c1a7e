"""How far the text cue is believed on a product: by what it says of the shown good parts.

Beyond the paper. The text cue P knows good from bad on kinds the encoder was trained on; on others
it may call good parts abnormal, and then it drowns the distances, which stay right. The good parts
themselves tell: where P calls patches of them abnormal with conviction, its odds are lowered on
this product. The length of a product's anchors is that factor (`engines.detector.Detector.bind`).
Figures with and without: docs/evaluation.md.
"""

import numpy as np
from numpy.typing import NDArray

ODDEST = 0.95
"""The cue is judged by this quantile of its logits over all patches of the good parts."""
LIMIT = 2.0
"""Up to here (P = .88) nothing changes: a cue half wrong about good parts still ranks bad ones."""
STEEPNESS = 3.0
"""Beyond, so many times the excess is taken off every logit."""
LEAST = 1e-4
"""Anchors need a direction, so their length never reaches nought."""


def reference_trust(p: NDArray[np.floating]) -> float:
    """Factor in [LEAST, 1] on the odds of P, from P (...,3) of good parts (taps b and c)."""
    seen = np.asarray(p, np.float64).reshape(-1, 3)[:, 1:]
    oddest = float(np.clip(np.quantile(seen, ODDEST, axis=0).max(), 1e-9, 1 - 1e-9))
    excess = float(np.log(oddest / (1 - oddest))) - LIMIT
    return max(LEAST, float(np.exp(-STEEPNESS * max(0.0, excess))))


def in_words(trust: float) -> str:
    """One clause for the person who enrols."""
    if trust > 0.3:
        return f"the model's words for good and bad fit these parts (trust {trust:.2f})"
    if trust > 0.03:
        return f"the model's words fit these parts in part (trust {trust:.2f})"
    return f"the model's words hardly fit these parts: judged by distance (trust {trust:.4f})"


def carry(anchors: NDArray[np.floating], trust: float) -> NDArray[np.float32]:
    """Unit anchors (...,2,E) with `trust` as their length."""
    return np.asarray(anchors * trust, np.float32)
