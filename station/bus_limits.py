"""Token buckets per client key: what one observer may cost the station."""

from collections.abc import Callable


class Buckets:
    """At most `per_s` in the long run and `burst` at once, per name (bounded number of names)."""

    MAX_NAMES = 1024

    def __init__(self, per_s: float, burst: float, now: Callable[[], float]) -> None:
        self._per_s, self._burst, self._now = per_s, burst, now
        self._level: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> bool:
        """Whether this name may do it once more now."""
        now = self._now()
        level, since = self._level.get(name, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._per_s)
        allowed = level >= 1.0
        if name not in self._level and len(self._level) >= self.MAX_NAMES:
            self._level.clear()
        self._level[name] = (level - 1.0 if allowed else level, now)
        return allowed
