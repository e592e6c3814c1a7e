"""What the page shows, as data: last part, rejects, counts of this shift, state of the station.

Fed with bus messages by one thread, read by many; no sockets, no clock of its own.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from station.schema import Body, Desc, DescState, Event, Result, Status, Verdict

HISTORY = 2000  # parts in the histogram and the what-if
REJECTS = 48
EVENTS = 50
SPARK = 120  # points of the latency line
Message = tuple[str, dict[str, Any]]


def slim(result: Result) -> dict[str, Any]:
    """A result as the page needs it. Times in milliseconds (JavaScript's unit)."""
    return {
        "seq": result.seq,
        "epoch": result.epoch,
        "trigger": result.trigger_id,
        "part": result.part_id,
        "attempt": result.attempt,
        "verdict": result.verdict.value,
        "reason": result.reason.value,
        "late": result.late,
        "simulated": result.simulated,
        "score": result.score,
        "threshold": result.threshold,
        "regions": [[r.x, r.y, r.w, r.h, r.peak] for r in result.regions],
        "region_count": result.region_count,
        "recipe": result.recipe,
        "image": result.image_ref,
        "t": result.t_trigger_us / 1000,
        "done": result.t_done_us / 1000,
        "ms": max(0.0, (result.t_done_us - result.t_trigger_us) / 1000),
        "described": result.desc_state is DescState.QUEUED,
        "words": None,
    }


def words(desc: Desc) -> dict[str, Any]:
    """A description as the page needs it."""
    return {
        "trigger": desc.trigger_id,
        "sentence": desc.sentence,
        "source": desc.source,
        "category": desc.category,
        "contradiction": desc.contradiction,
    }


class Shift:
    """Counts since the shift began."""

    def __init__(self, start_us: int) -> None:
        self.start_us = start_us
        self.first_us: int | None = None
        self.parts = 0
        self.verdicts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.categories: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Count a part; rejects by reason."""
        self.first_us = min(self.first_us or result.t_trigger_us, result.t_trigger_us)
        self.parts += 1
        self.verdicts[result.verdict.value] += 1
        if not result.accept:
            self.reasons["late" if result.verdict is Verdict.OK else result.reason.value] += 1

    def as_dict(self) -> dict[str, Any]:
        """For the page. `yield` is the share of parts that may pass, None without parts."""
        passed = self.parts - sum(self.reasons.values())
        return {
            "start": self.start_us / 1000,
            "counted_from": self.first_us / 1000 if self.first_us else None,
            "parts": self.parts,
            "rejects": self.parts - passed,
            "yield": passed / self.parts if self.parts else None,
            "verdicts": dict(self.verdicts),
            "reasons": dict(self.reasons.most_common()),
            "categories": dict(self.categories.most_common(6)),
        }


class Board:
    """Thread-safe. `shift_start()` gives the beginning of the current shift (aware or local)."""

    def __init__(self, shift_start: Callable[[], datetime]) -> None:
        self._lock = threading.RLock()
        self._shift_start = shift_start
        self._shift = Shift(_us(shift_start()))
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._rejects: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._words: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._in_shift: OrderedDict[str, None] = OrderedDict()
        self._identity: dict[str, str] = {}
        self._status: Status | None = None
        self._alive = False
        self.lock = self._lock

    def add(self, body: Body) -> list[Message]:
        """Take one message of the bus; what the pages must be told."""
        with self._lock:
            if isinstance(body, Result):
                return self._add_result(body)
            if isinstance(body, Desc):
                return self._add_desc(body)
            if isinstance(body, Event):
                return self._add_event(body)
            if isinstance(body, Status):
                self._status = body
            return []

    def set_alive(self, alive: bool) -> None:
        """Whether heartbeats move (decided by the feed)."""
        with self._lock:
            self._alive = alive

    def state(self) -> dict[str, Any]:
        """The station's state in a few fields."""
        with self._lock:
            status = self._status
            if status is None:
                return {"alive": False, "known": False}
            return {
                "alive": self._alive,
                "known": True,
                "ready": status.ready,
                "busy": status.busy,
                "mode": status.mode,
                "faults": list(status.faults),
                "fps": status.fps,
                "queue": status.queue_depth,
                "open": status.open_triggers,
                "disk": status.disk_free,
                "recipe": status.recipe,
                "describer": status.describer,
                "simulated": status.simulated,
                "version": status.version,
                "line": status.line,
                "station": status.station,
            }

    def snapshot(self) -> dict[str, Any]:
        """Everything a page needs when it opens."""
        with self._lock:
            recent = list(self._history)[-SPARK:]
            return {
                "state": self.state(),
                "last": self._history[-1] if self._history else None,
                "rejects": list(self._rejects.values()),
                "shift": self._shift.as_dict(),
                "spark": [part["ms"] for part in recent],
                "passed": [
                    p["score"] for p in list(self._history)[-SPARK:] if p["verdict"] == "OK"
                ],
                "events": list(self._events),
                "identity": self._identity,
            }

    def history(self) -> list[list[Any]]:
        """[score, threshold, verdict, part, trigger] of the recent parts with a score."""
        with self._lock:
            return [
                [p["score"], p["threshold"], p["verdict"], p["part"], p["trigger"]]
                for p in self._history
                if p["score"] is not None
            ]

    def _add_result(self, result: Result) -> list[Message]:
        self._roll_shift()
        part = slim(result) | {"words": self._words.get(result.trigger_id)}
        self._history.append(part)
        if result.t_trigger_us >= self._shift.start_us:
            self._shift.add(result)
            self._remember(self._in_shift, result.trigger_id, None, 4 * HISTORY)
        if not result.accept:
            self._remember(self._rejects, result.trigger_id, part, REJECTS)
        self._identity = {
            "recipe": result.recipe,
            "recipe_sha": result.recipe_sha,
            "bundle_sha": result.bundle_sha,
            "config_sha": result.config_sha,
            "epoch": result.epoch,
        }
        return [("result", part | {"shift": self._shift.as_dict()})]

    def _add_desc(self, desc: Desc) -> list[Message]:
        text = words(desc)
        self._remember(self._words, desc.trigger_id, text, HISTORY)
        if desc.trigger_id in self._rejects:
            self._rejects[desc.trigger_id]["words"] = text
        if self._history and self._history[-1]["trigger"] == desc.trigger_id:
            self._history[-1]["words"] = text
        if desc.category and desc.trigger_id in self._in_shift:
            self._shift.categories[desc.category] += 1
        return [("desc", text | {"shift": self._shift.as_dict()})]

    def _add_event(self, event: Event) -> list[Message]:
        told = {
            "seq": event.seq,
            "t": event.t_us / 1000,
            "kind": event.kind,
            "severity": event.severity.value,
            "text": event.text,
        }
        self._events.append(told)
        return [("event", told)]

    def _roll_shift(self) -> None:
        start = _us(self._shift_start())
        if start != self._shift.start_us:
            self._shift = Shift(start)
            self._in_shift.clear()

    @staticmethod
    def _remember(store: OrderedDict[str, Any], key: str, value: object, limit: int) -> None:
        store[key] = value
        while len(store) > limit:
            store.popitem(last=False)


def _us(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp() * 1_000_000)
