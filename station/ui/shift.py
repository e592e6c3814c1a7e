"""When the current shift began, by the wall clock of this machine."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from engines.errors import ConfigError

_TIME = re.compile(r"^([01]\d|2[0-3]):([0-5]\d)$")


def parse_starts(texts: Sequence[str]) -> list[tuple[int, int]]:
    """ "06:00" ... as sorted (hour, minute); ConfigError names the one that is no time of day."""
    if not texts:
        raise ConfigError('ui.shift_starts is empty: give at least one time, for example ["06:00"]')
    found = []
    for text in texts:
        match = _TIME.match(text)
        if match is None:
            raise ConfigError(f"ui.shift_starts: {text!r} is no time of day like 06:00")
        found.append((int(match[1]), int(match[2])))
    return sorted(found)


def shift_start(now: datetime, starts: Sequence[tuple[int, int]]) -> datetime:
    """The latest start at or before `now` (yesterday's last one before today's first)."""
    today = [now.replace(hour=h, minute=m, second=0, microsecond=0) for h, m in starts]
    before = [start for start in today if start <= now]
    return before[-1] if before else today[-1] - timedelta(days=1)
