"""How the bus is configured, what it asks of the daemon, and how the daemon answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from station.schema import StatusFacts
from station.schema_ctl import AdminCommand, Trigger


@dataclass(frozen=True)
class BusConfig:
    """Addresses and names. A port "*" picks a free one (tests). `keys` = folder made by
    `station keys new`; None = no CURVE, allowed on loopback or with `insecure` only."""

    line: str
    station: str
    pub: str = "tcp://127.0.0.1:5561"
    ctl: str = "tcp://127.0.0.1:5560"
    keys: Path | None = None
    insecure: bool = False
    status_ms: int = 200
    image_per_s: float = 20.0


class TriggerReply(Protocol):
    """The answer to one TRIGGER. Callable from any thread, exactly one of these, once.

    After `accepted` the RESULT follows by itself when the ledger has committed it.
    """

    @property
    def session(self) -> str: ...
    @property
    def received_ns(self) -> int: ...
    def accepted(self, part_id: str, attempt: int) -> None: ...
    def busy(self) -> None: ...
    def not_ready(self, why: str) -> None: ...
    def duplicate(self) -> None: ...


class AdminReply(Protocol):
    """The answer to RECIPE, MODE or RESET: exactly one of these, once, from any thread."""

    def done(self, **data: str | int | float | bool | None) -> None: ...
    def refused(self, why: str) -> None: ...


class BusHandler(Protocol):
    """What the daemon offers the bus. Called in the bus thread: each must return in < 1 ms."""

    def on_trigger(self, command: Trigger, reply: TriggerReply) -> None:
        """Decide busy / not_ready at once; else open the part and answer when it is durable."""
        ...

    def status(self) -> StatusFacts: ...

    def image(self, ref: str) -> tuple[str, bytes] | None:
        """(media type, PNG or JPEG bytes <= 4 MiB) or None. Called in a helper thread."""
        ...

    def on_admin(self, command: AdminCommand, reply: AdminReply) -> None: ...
