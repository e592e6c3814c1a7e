"""Do good parts still look and score like those the threshold was made from?

Four signals of parts judged OK are watched: the score against the recipe's held-out good parts,
and score, brightness and contrast against the first good parts of this run (enrolment has few
parts: a slow walk shows against a large baseline long before it shows against thirty). Windows
are compared by the Mann-Whitney rank statistic, normal approximation with ties. Upward drift of
scores comes before false rejects; downward drift (a soft lens) before missed defects; brightness
and contrast before both. Each signal alarms once and tells when it is over.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from station.parts import PartRecord
from station.schema import Verdict

WINDOW = 512
P_ALARM = 5e-4  # looked at every 128 good parts, windows overlap: rare false alarms
MIN_REFERENCE = 8  # below it a rank test has nothing to say
ADVICE = {
    ("score", "up"): "check light, lens and position before good parts are rejected",
    ("score", "down"): "check focus and light: defects may be missed",
    ("brightness", "up"): "check lamp and exposure",
    ("brightness", "down"): "check lamp and exposure",
    ("contrast", "up"): "check light and position",
    ("contrast", "down"): "clean the lens, check focus and light",
}


@dataclass(frozen=True)
class DriftAlarm:
    """What changed. `p` is the two-sided chance of such a window without drift."""

    signal: str
    direction: str
    p: float
    median: float
    reference_median: float
    over: bool = False

    def __str__(self) -> str:
        if self.over:
            return f"{self.signal} of good parts is back to normal (median {self.median:.3g})"
        return (
            f"{self.signal} of good parts drifts {self.direction}: median {self.median:.3g}, "
            f"before {self.reference_median:.3g} (p = {self.p:.0e}); "
            f"{ADVICE.get((self.signal, self.direction), 'look at the camera')}"
        )


def mann_whitney_z(a: Sequence[float], b: Sequence[float]) -> float:
    """Standard normal deviate of the rank sum of `a` against `b`; > 0: `a` is larger."""
    pooled = np.concatenate([np.asarray(a, float), np.asarray(b, float)])
    n, m = len(a), len(b)
    values, inverse, counts = np.unique(pooled, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return 0.0
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float(((counts**3) - counts).sum()) / (total * (total - 1))
    spread = math.sqrt(n * m / 12 * (total + 1 - ties))
    return (u - n * m / 2) / spread


class SignalMonitor:
    """One signal against a reference, given or (None) taken from the first `window` values."""

    def __init__(
        self,
        signal: str,
        reference: Sequence[float] | None = None,
        window: int = WINDOW,
        p_alarm: float = P_ALARM,
    ) -> None:
        self.signal = signal
        self._learning = reference is None
        self._reference = list(reference or ())
        self._window = window
        self._values: deque[float] = deque(maxlen=window)
        self._p_alarm = p_alarm
        self._since = 0
        self._drifting = False
        self.p = 1.0

    def add(self, value: float) -> DriftAlarm | None:
        """See one value of a good part; looks at the window each time a quarter of it is new."""
        if not math.isfinite(value):
            return None
        if self._learning:
            self._reference.append(value)
            self._learning = len(self._reference) < self._window
            return None
        if len(self._reference) < MIN_REFERENCE:
            return None
        self._values.append(value)
        self._since += 1
        if len(self._values) < self._window or self._since < self._window // 4:
            return None
        self._since = 0
        return self._look()

    def _look(self) -> DriftAlarm | None:
        z = mann_whitney_z(self._values, self._reference)
        self.p = math.erfc(abs(z) / math.sqrt(2))
        # Hysteresis: an alarm ends at a hundred times the chance at which it began.
        drifting = self.p < self._p_alarm * (100 if self._drifting else 1)
        if drifting == self._drifting:
            return None
        self._drifting = drifting
        return DriftAlarm(
            signal=self.signal,
            direction="up" if z > 0 else "down",
            p=self.p,
            median=float(np.median(self._values)),
            reference_median=float(np.median(self._reference)),
            over=not drifting,
        )


class DriftMonitor:
    """PartObserver for parts of one recipe; `on_event(kind, severity, text)` is told alarms."""

    def __init__(
        self,
        held_out: Sequence[float],
        threshold: float,
        on_event: Callable[[str, str, str], None],
        window: int = WINDOW,
        p_alarm: float = P_ALARM,
    ) -> None:
        """`held_out`: scores of the good parts that the recipe's threshold was made from."""
        # Parts above the threshold are rejects and play no part, so the reference is cut there too.
        enrolled = [s for s in held_out if math.isfinite(s) and s <= threshold]
        # Fast against enrolment (a quarter of the window): it must notice a bad start of the day.
        self._monitors = (
            ("score", SignalMonitor("score", enrolled, max(8, window // 4), p_alarm)),
            ("score", SignalMonitor("score", None, window, p_alarm)),
            ("brightness", SignalMonitor("brightness", None, window, p_alarm)),
            ("contrast", SignalMonitor("contrast", None, window, p_alarm)),
        )
        self._tell = on_event

    @property
    def p(self) -> float:
        """The smallest p of the signals: 1 = nothing drifts."""
        return min(monitor.p for _, monitor in self._monitors)

    def part(self, record: PartRecord) -> None:
        """See one part; only good ones count."""
        if record.result.verdict is not Verdict.OK:
            return
        signals = _signals(record)
        for name, monitor in self._monitors:
            alarm = monitor.add(signals[name]) if name in signals else None
            if alarm is not None:
                self._tell("drift", "info" if alarm.over else "warning", str(alarm))

    def close(self) -> None:
        """Nothing is held open."""


class RecipeDrift:
    """PartObserver: a `DriftMonitor` for each recipe in use (several cameras, a changeover)."""

    def __init__(self, monitor: Callable[[str], DriftMonitor | None]) -> None:
        """`monitor(recipe_sha)`: a new one for a recipe in use, None for any other recipe."""
        self._make = monitor
        self._monitors: dict[str, DriftMonitor] = {}

    @property
    def p(self) -> float:
        """The smallest p of the recipes in use: 1 = nothing drifts. Any thread."""
        return min((monitor.p for monitor in list(self._monitors.values())), default=1.0)

    def part(self, record: PartRecord) -> None:
        """See one part against the good parts of its own recipe."""
        sha = record.result.recipe_sha
        if sha not in self._monitors:
            made = self._make(sha)
            if made is None:
                return  # a late part of the recipe before, or one without a recipe
            kept = {old: m for old, m in self._monitors.items() if self._make(old) is not None}
            self._monitors = {**kept, sha: made}
        self._monitors[sha].part(record)

    def close(self) -> None:
        """Nothing is held open."""


def _signals(record: PartRecord) -> dict[str, float]:
    signals = {}
    if record.result.score is not None:
        signals["score"] = record.result.score
    image = record.frame.image if record.frame is not None else None
    if image is not None:
        sample = image[::8, ::8]  # 1/64 of the pixels is plenty for a mean
        signals["brightness"] = float(sample.mean())
        signals["contrast"] = float(sample.std())
    return signals
