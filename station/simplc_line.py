"""The line itself: parts come when they are due, whether or not the station is there."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from station.simplc_drive import Answer, Driver, State
from station.simplc_score import PlcLog
from station.simplc_script import Part, Script

# A part is over the reject gate this many takts after it was due; then it cannot be triggered.
GATE_TAKTS = 1.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests can bend it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def run_line(
    script: Script,
    parts: Iterable[Part],
    driver: Driver,
    log: PlcLog,
    *,
    name: str = "",
    clock: Clock | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Run the parts through the driver. A part the PLC comes too late for is rejected unseen.

    With takt 0 each part follows the one before at once. `stopped` is asked before each part.
    """
    clock = clock or Clock()
    begun = clock.now()
    for part in parts:
        if stopped():
            return
        wait = begun + part.due_s - clock.now()
        if wait > 0:
            clock.sleep(wait)
        lag_ms = max(0.0, -wait) * 1000
        part_id = f"{name}{part.trigger}"
        if script.takt_ms and lag_ms > GATE_TAKTS * script.takt_ms:
            log.add(part, part_id, Answer(State.MISSED, reason="line_moved_on"), lag_ms)
            continue
        for answer in driver.inspect(part.trigger, part_id, part.fault):
            log.add(part, part_id, answer, lag_ms)
