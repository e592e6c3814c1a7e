"""How far the text cue is trusted on a product: as far as it finds the shown good parts normal.

Beyond the paper. The text cue P knows good from bad on kinds the encoder was trained on; on others
it may call half of a good part abnormal, and then it drowns the distances, which stay right. The
good parts themselves tell which it is: if P finds even their oddest patches normal it is believed,
if not the map goes by the distances alone. The length of a product's anchors carries the trust
(`engines.detector.Detector.bind`). Figures with and without: docs/evaluation.md.
"""

import numpy as np
from numpy.typing import NDArray

ODDEST = 0.95
"""The cue is judged by this quantile of its logits over all patches of the good parts."""
LIMIT = -1.0
"""Trust one half where that quantile lies here (P = .27): known kinds lie below -2."""
WIDTH = 0.5
"""How sharply trust falls with the quantile, in logits."""
LEAST = 0.01
"""Anchors need a direction, so their length never reaches nought."""


def reference_trust(p: NDArray[np.floating]) -> float:
    """Trust in [LEAST, 1] from P (...,3) in [0,1] of good parts, taps b and c (MODEL.md 2.4)."""
    seen = np.asarray(p, np.float64).reshape(-1, 3)[:, 1:]
    oddest = float(np.quantile(seen, ODDEST, axis=0).max())
    held = float(np.clip(oddest, 1e-9, 1 - 1e-9))
    lean = (np.log(held / (1 - held)) - LIMIT) / WIDTH
    return max(LEAST, float(1 / (1 + np.exp(np.clip(lean, -50, 50)))))


def in_words(trust: float) -> str:
    """One clause for the person who enrols."""
    if trust > 0.8:
        return f"the model's words for good and bad fit these parts (trust {trust:.2f})"
    if trust > 0.2:
        return f"the model's words fit these parts half (trust {trust:.2f})"
    return f"the model's words do not fit these parts: judged by distance alone ({trust:.2f})"


def carry(anchors: NDArray[np.floating], trust: float) -> NDArray[np.float32]:
    """Unit anchors (...,2,E) with `trust` as their length."""
    return np.asarray(anchors * trust, np.float32)
