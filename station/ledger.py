"""The ledger: the durable journal in which a verdict exists before anybody hears of it.

One SQLite connection (WAL, synchronous=FULL), one writer thread, group commit of what is already
waiting. Every method may be called from any thread. Answers come as `Future`s, resolved in the
writer thread after the commit is durable; listeners see every new row in seq order.
"""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from station.ledger_types import Committed, Duplicate, FetchPage, PartHandle
from station.schema import DescDraft, EventDraft, Opening, ResultDraft, Stream

__all__ = ["Committed", "Duplicate", "FetchPage", "Ledger", "PartHandle"]

Listener = Callable[[Committed], None]


class Ledger:
    """Opens (or creates) the journal at `path`; LedgerError if it cannot, InUseError if locked.

    At start: quick_check (a corrupt file is moved aside and an event `ledger_corrupt` tells so),
    every PENDING part becomes ERROR/restart, `recovered` lists those rows.
    """

    epoch: str
    recovered: tuple[Committed, ...]
    moved_aside: Path | None

    def __init__(self, path: Path, *, line: str, station: str) -> None:
        raise NotImplementedError

    @property
    def healthy(self) -> bool:
        """False from a failed commit until a probe write succeeded again; READY needs it."""
        raise NotImplementedError

    @property
    def tick_ns(self) -> int:
        """Monotonic time of the writer thread's last loop (it loops at least every 100 ms)."""
        raise NotImplementedError

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` in the writer thread for every new durable row, in seq order.

        It must be quick and not raise. The bus registers itself: it publishes rows and answers
        triggers, so nobody else has to (and must not).
        """
        raise NotImplementedError

    def last_seq(self, stream: Stream | str) -> int:
        """The newest durable seq of a stored stream (0: none), without touching the disk."""
        raise NotImplementedError

    def open_part(self, opening: Opening) -> "Future[PartHandle | Duplicate]":
        """Accept a trigger: PENDING is durable when the future resolves; LedgerError if not."""
        raise NotImplementedError

    def commit_result(self, draft: ResultDraft) -> "Future[Committed]":
        """Write a part's verdict; the first write wins. Durable when the future resolves.

        A draft that comes after the deadline is written as UNDECIDED/deadline (`replaced`).
        LedgerError: not durable and nothing was sent; the part resolves to ERROR/restart later.
        """
        raise NotImplementedError

    def append(self, stream: Stream | str, draft: DescDraft | EventDraft) -> "Future[Committed]":
        """Store and publish a description or an event."""
        raise NotImplementedError

    def fetch(
        self, stream: Stream | str, epoch: str, from_seq: int, limit: int = 100
    ) -> "Future[FetchPage]":
        """Stored bodies from `from_seq` on; also bounded in bytes, so a page may be shorter."""
        raise NotImplementedError

    def latest(self, stream: Stream | str) -> "Future[bytes | None]":
        """The newest stored body."""
        raise NotImplementedError

    def get_part(self, part_id: str) -> "Future[tuple[bytes, ...]]":
        """All results of a part id, oldest attempt first."""
        raise NotImplementedError

    def ack(self, consumer: str, stream: Stream | str, upto_seq: int) -> "Future[int]":
        """Move a durable cursor forward (never back); resolves to where it is now."""
        raise NotImplementedError

    def forget(self, consumer: str) -> "Future[int]":
        """Drop the cursors of a consumer that will not come back; how many were dropped."""
        raise NotImplementedError

    @property
    def cursors(self) -> dict[str, dict[str, int]]:
        """consumer -> stream -> acknowledged seq, as of the last commit."""
        raise NotImplementedError

    def retain(self, older_than_us: int) -> "Future[int]":
        """Delete rows that every cursor has acknowledged and that are older (wall, µs)."""
        raise NotImplementedError

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, stop the thread, close the file, release the lock."""
        raise NotImplementedError
