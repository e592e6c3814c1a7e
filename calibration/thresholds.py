"""Thresholds from good parts only: a split-conformal quantile and what it promises.

With n held-out good parts exchangeable with those to come, the k-th smallest score,
k = ceil((n + 1)(1 - alpha)), is exceeded by a fresh good part with probability at most alpha.
The rate realised by one enrolment is Beta(n + 1 - k, k) distributed, and the number of false
rejects among m fresh parts beta-binomial: that is the interval an enrolment states.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A score cannot exceed 1, so with no held-out part at all nothing is called NG.
NO_EVIDENCE = 1.0
FEWEST_TO_COMPARE = 5


@dataclass(frozen=True)
class Threshold:
    """A threshold with its promise; `learning` when n is too small for `alpha`."""

    value: float
    alpha: float
    n: int
    k: int
    learning: bool

    def guarantee(self) -> str:
        """One sentence saying what the threshold promises."""
        if self.learning:
            need = parts_needed(self.alpha)
            return (
                f"learning: {self.n} held-out good parts, {need} needed to promise "
                f"a false-reject rate of {self.alpha:.1%}"
            )
        return (
            f"a fresh good part is rejected with probability at most {self.alpha:.1%} "
            f"(conformal, {self.n} held-out good parts)"
        )


def parts_needed(alpha: float) -> int:
    """Held-out good parts a rate of `alpha` needs: n >= 1/alpha - 1 (19 for 5 %, 99 for 1 %)."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie in (0, 1), not {alpha}")
    return max(1, math.ceil(1.0 / alpha - 1.0 - 1e-9))


def conformal_threshold(scores: Sequence[float], alpha: float = 0.05) -> Threshold:
    """Threshold from held-out scores (n,); a part is good when its score <= value.

    With n < 1/alpha - 1 the quantile does not exist: the largest score is taken (it rejects a good
    part with probability 1/(n+1)) and `learning` is set. Raises ValueError on scores not finite.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(ordered).all():
        raise ValueError("a held-out score is not finite")
    n = len(ordered)
    if n < parts_needed(alpha):
        value = float(ordered[-1]) if n else NO_EVIDENCE
        return Threshold(value, alpha, n, n, learning=True)
    k = math.ceil((n + 1) * (1.0 - alpha) - 1e-9)
    return Threshold(float(ordered[k - 1]), alpha, n, k, learning=False)


def far_above(scores: Sequence[float]) -> list[int]:
    """Indices of scores (n,) that stand far above the others, highest first.

    Ten median deviations above the median (.01 at least): a held-out "good" part that is a defect,
    or no part at all, would raise the limit to its own score, and everything below would pass.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < FEWEST_TO_COMPARE:
        return []
    middle = float(np.median(values))
    step = max(1.4826 * float(np.median(np.abs(values - middle))), 0.01)
    order = np.argsort(-values, kind="stable")
    return [int(i) for i in order if values[i] > middle + 10 * step]


def beta_binomial_pmf(m: int, a: int, b: int) -> np.ndarray:
    """P(X = 0..m) f64 (m+1,) of the beta-binomial with parameters a, b > 0."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    def log_choose(j: int) -> float:
        return math.lgamma(m + 1) - math.lgamma(j + 1) - math.lgamma(m - j + 1)

    base = log_beta(a, b)
    logs = [log_choose(j) + log_beta(j + a, m - j + b) - base for j in range(m + 1)]
    return np.exp(np.asarray(logs))


def reject_interval(n: int, k: int, m: int, level: float = 0.95) -> tuple[float, float]:
    """Central interval of the false-reject RATE among m fresh good parts (fractions 0..1).

    n held-out parts, threshold the k-th smallest score (1 <= k <= n): the count is
    BetaBinomial(m, n + 1 - k, k). Each tail outside holds at most (1 - level) / 2.
    """
    if not 1 <= k <= n or m < 1:
        raise ValueError(f"need 1 <= k <= n and m >= 1, not n={n}, k={k}, m={m}")
    below = np.cumsum(beta_binomial_pmf(m, n + 1 - k, k))
    tail = (1.0 - level) / 2.0
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1.0 - tail - 1e-12, side="left"))
    return low / m, min(high, m) / m
