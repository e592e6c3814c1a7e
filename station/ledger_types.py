"""What goes into the ledger and what comes out of it."""

from dataclasses import dataclass

from station.schema import Stream


@dataclass(frozen=True)
class PartHandle:
    """An accepted trigger whose PENDING row is durable. `deadline_ns` is monotonic."""

    trigger_id: str
    part_id: str
    attempt: int
    session: str | None
    received_ns: int
    deadline_ns: int


@dataclass(frozen=True)
class Duplicate:
    """The trigger id is already in the ledger: no new part, and no verdict is given away.

    `session` is the one that opened it, `done` whether it has its verdict.
    """

    trigger_id: str
    session: str | None
    done: bool


@dataclass(frozen=True)
class Committed:
    """A durable row: its very bytes. `first` False = another verdict was there first (its bytes
    are returned, nothing is published); `replaced` = the draft came too late and the deadline's
    UNDECIDED was written in its place."""

    stream: Stream
    seq: int
    body: bytes
    trigger_id: str | None = None
    late: bool = False
    first: bool = True
    replaced: bool = False


@dataclass(frozen=True)
class FetchPage:
    """Stored bodies from a seq on. `first_seq` is the oldest still held (1 if none was deleted).

    `gone`: what was asked for lies before `first_seq` (retention) or in another epoch; then
    `bodies` is empty. `end`: nothing newer was stored when the page was read.
    """

    stream: Stream
    epoch: str
    from_seq: int
    bodies: tuple[bytes, ...]
    next_seq: int
    first_seq: int
    last_seq: int
    gone: bool

    @property
    def end(self) -> bool:
        """True when `next_seq` is beyond the newest row."""
        return self.next_seq > self.last_seq
