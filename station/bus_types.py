"""How the bus is configured, what it asks of the daemon, and how the daemon answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from station.schema import StatusFacts
from station.schema_ctl import AdminCommand, Trigger

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class BusConfig:
    """Addresses and names. A port "*" picks a free one (tests). `keys` = folder made by
    `station keys new`; None = no CURVE, allowed on loopback or with `insecure` only.
    `image_per_s` bounds GETs per client key, `audit` is the audit log (default: in `keys`)."""

    line: str
    station: str
    pub: str = "tcp://127.0.0.1:5561"
    ctl: str = "tcp://127.0.0.1:5560"
    keys: Path | None = None
    insecure: bool = False
    status_ms: int = 200
    image_per_s: float = 20.0
    audit: Path | None = None


class TriggerReply(Protocol):
    """The answer to one TRIGGER. Callable from any thread, exactly one of these, once.

    After `accepted` the RESULT follows by itself when the ledger has committed it.
    """

    @property
    def session(self) -> str:
        """The session that asked; goes into `Opening.session`."""
        ...

    @property
    def received_ns(self) -> int:
        """Monotonic time of receipt, from which the deadline runs."""
        ...

    def accepted(self, part_id: str, attempt: int) -> None:
        """The part is PENDING in the ledger."""
        ...

    def busy(self) -> None:
        """As many parts are open as may be; nothing was opened."""
        ...

    def not_ready(self, why: str) -> None:
        """The station cannot inspect now; nothing was opened."""
        ...

    def duplicate(self) -> None:
        """The ledger knows this trigger id; no verdict is given away."""
        ...


class AdminReply(Protocol):
    """The answer to RECIPE, MODE or RESET: exactly one of these, once, from any thread."""

    def done(self, **data: Scalar) -> None:
        """It is done; `data` says what came of it (e.g. the changeover time)."""
        ...

    def refused(self, why: str) -> None:
        """It was not done."""
        ...


class BusHandler(Protocol):
    """What the daemon offers the bus. Called in the bus thread: each must return in < 1 ms."""

    def on_trigger(self, command: Trigger, reply: TriggerReply) -> None:
        """Decide busy / not_ready at once; else open the part and answer when it is durable."""
        ...

    def status(self) -> StatusFacts:
        """The daemon's part of the status, five times a second."""
        ...

    def image(self, ref: str) -> tuple[dict[str, Scalar], bytes] | None:
        """(header with "media_type", PNG or JPEG of at most 4 MiB) or None if there is none.

        Called in a helper thread: it may read a file.
        """
        ...

    def on_admin(self, command: AdminCommand, reply: AdminReply) -> None:
        """RECIPE, MODE, RESET: start it, answer when done."""
        ...
