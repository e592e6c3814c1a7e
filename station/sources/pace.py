"""How fast a camera delivers, learned from its frames: what a stall is depends on it."""

WINDOW_NS = 500_000_000  # at least this long, and this many frames, before a mean is believed
WINDOW_FRAMES = 8
SLIDE_NS = 4_000_000_000
# A longer gap is a pause, no pace. Below the shortest stall (250 ms), or stalls would stretch it.
PAUSE_NS = 200_000_000
BUNCH = 50  # at most so many frames behind a pause are taken for ones that had waited


class Pace:
    """The mean frame period (ns) over the last seconds; 0 while nothing is known.

    A mean over a span and not of single gaps: a station that was busy finds several frames at once,
    and tiny gaps must not make a slow camera look fast (every pause would then be a stall). A stall
    itself begins a new span, so that it does not stretch what counts as a stall.
    """

    def __init__(self, period_ns: int = 0) -> None:
        self.period_ns = period_ns
        self._believed = period_ns > 0
        self._from: tuple[int, int] | None = None
        self._last_ns = 0
        self._bunch = 0

    def told(self, fps: float) -> None:
        """What the driver says; frames know better."""
        if fps > 0 and not self.period_ns:
            self.period_ns = int(1e9 / fps)

    def frame(self, t_ns: int, index: int) -> None:
        """One frame: its capture time and its number (frames that were dropped count)."""
        gap, self._last_ns = t_ns - self._last_ns, t_ns
        stalled = self.period_ns > 0 and gap > max(4 * self.period_ns, PAUSE_NS)
        if self._from is None or stalled or not 0 < index - self._from[1] < 1 << 31:
            self._from, self._bunch = (t_ns, index), BUNCH if self.period_ns else 0
            return
        self._bunch = self._bunch - 1 if gap < self.period_ns // 4 else 0
        if self._bunch > 0:  # what had waited during the pause comes at once and tells nothing
            self._from = (t_ns, index)
            return
        span, count = t_ns - self._from[0], index - self._from[1]
        if span <= 0:
            return
        if span >= WINDOW_NS and count >= WINDOW_FRAMES:
            self.period_ns, self._believed = span // count, True
        elif not self._believed:
            self.period_ns = max(self.period_ns, span // count)
        if span >= SLIDE_NS and count >= WINDOW_FRAMES:
            self._from = (t_ns, index)
