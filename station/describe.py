"""The describer process seen from the daemon: submit, get called back, never wait.

The child is a separate program at idle priority with its own socket; killing it at any moment
costs the sentence it was saying and nothing else. Used by `station.daemon`:

    service = DescribeService(settings, on_description, on_event)
    service.start()
    if service.submit(request): ...        # False: queue full or describer off; counted and named
    service.stats()                        # for status, /metrics
    service.stop()
"""

from collections.abc import Callable
from dataclasses import dataclass

from engines.describer import DescribeRequest, DescriberSettings, Description


@dataclass(frozen=True)
class DescribeStats:
    """Counters since start. `source` is "llm", "template", "off" or "starting"."""

    source: str
    reason: str | None
    queued: int
    submitted: int
    described: int
    dropped: int
    restarts: int
    contradictions: int
    tokens_per_s: float


class DescribeService:
    """Owner of the describer child, a bounded queue and one thread. All methods return at once.

    `on_description(description)` and `on_event(name, text, part_id | None)` are called from the
    service's own thread. Event names: describer_ready, describer_fallback, describer_restart,
    description_dropped, description_late.
    """

    def __init__(
        self,
        settings: DescriberSettings,
        on_description: Callable[[Description], None],
        on_event: Callable[[str, str, str | None], None],
    ) -> None: ...

    def start(self) -> None:
        """Start thread and child; returns at once, descriptions wait until the child is warm."""

    def submit(self, request: DescribeRequest) -> bool:
        """Queue one part; False when the queue is full (newest is dropped) or describing is off."""
        return False

    @property
    def room(self) -> int:
        """How many requests `submit` would take now (for `desc_state` at verdict time)."""
        return 0

    def stats(self) -> DescribeStats:
        """Counters of this moment."""
        raise NotImplementedError

    def stop(self, timeout_s: float = 1.0) -> None:
        """Kill the child and end the thread; requests still queued are dropped and counted."""
