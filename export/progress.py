"""Says where a build is: one line per step, with the time it took."""

import sys
import time


class Progress:
    """Counts steps; `clock` can be replaced in tests."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.latest = "start"
        self._start = self._last = time.monotonic()

    def step(self, what: str) -> None:
        """One step is finished."""
        self.latest = what
        self.done = min(self.done + 1, self.total)
        now = time.monotonic()
        share = f"[{self.done:2d}/{self.total}]"
        print(f"{share} {now - self._start:6.1f} s  {what}", file=sys.stderr, flush=True)
        self._last = now

    def say(self, text: str) -> None:
        """A sentence between steps."""
        print(text, file=sys.stderr, flush=True)
