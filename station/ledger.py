"""The ledger: the durable journal in which a verdict exists before anybody hears of it.

One SQLite connection (WAL, synchronous=FULL), one writer thread, group commit of what is already
waiting. Every method may be called from any thread. Answers come as `Future`s, resolved in the
writer thread after the commit is durable; listeners see every new row in seq order.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from engines.errors import LedgerError
from station.ledger_group import Group
from station.ledger_jobs import Job, attempt, resolve, running
from station.ledger_lock import LockFile
from station.ledger_recovery import heal, open_store, recover
from station.ledger_state import Moment, OpenPart
from station.ledger_store import Store
from station.ledger_types import Committed, Duplicate, FetchPage, PartHandle
from station.schema import DescDraft, EventDraft, Opening, ResultDraft, Stream

__all__ = ["Committed", "Duplicate", "FetchPage", "Ledger", "PartHandle"]

Listener = Callable[[Committed], None]
log = logging.getLogger("station.ledger")

IDLE_S = 0.1  # the writer ticks at least this often (idle workers tick every 100 ms)
HEAL_S = 1.0  # how often a faulty ledger is tried again
MAX_GROUP = 256  # bounds the time one transaction takes
# A checkpoint costs two fsyncs and tens of milliseconds: wait for a quiet moment, but not for ever
# (about 5 pages of 4 KiB per commit: the WAL stays below some 60 MB).
QUIET_S, QUIET_COMMITS, MOST_COMMITS = 0.2, 200, 3000
# Old rows go in small steps between verdicts: up to 1,000 a second, a few milliseconds each.
DELETE_BATCH, DELETE_EVERY_S = 100, 0.1


def system_clock() -> Moment:
    """The clocks of this machine."""
    return Moment(time.monotonic_ns(), time.time_ns() // 1000)


class Ledger:
    """Opens (or creates) the journal at `path`; LedgerError if it cannot, InUseError if locked.

    At start: quick_check (a corrupt file is moved aside and an event `ledger_corrupt` tells so),
    every PENDING part becomes ERROR/restart, `recovered` lists those rows.
    """

    def __init__(
        self,
        path: Path,
        *,
        line: str,
        station: str,
        clock: Callable[[], Moment] = system_clock,
    ) -> None:
        self.path, self._clock = path, clock
        self._lock = LockFile(path.with_name(path.name + ".lock"))
        try:
            self._store, self._who, self.moved_aside = open_store(path, line, station)
            self._last = self._store.last_seqs()
            group = recover(self._store, self._who, self._last, clock, self.moved_aside)
            self._last = group.last
            self._cursors = self._store.cursors()
        except BaseException:
            self._lock.release()
            raise
        self.epoch = self._who.epoch
        self.recovered: tuple[Committed, ...] = tuple(
            row for row in group.rows if row.stream is Stream.RESULT
        )
        self._start()

    def _start(self) -> None:
        self._parts: dict[str, OpenPart] = {}
        self._lost: set[str] = set()
        self._listeners: list[Listener] = []
        self._wake = threading.Condition()
        self._writes: deque[Job] = deque()
        self._reads: deque[tuple[Future, Callable[[Store], Any]]] = deque()
        self._closing = False
        self._written = threading.Event()  # everything that was asked for is durable
        self._fault: str | None = None
        self._commits, self._busy_at, self._heal_at = 0, time.monotonic(), 0.0
        self._retain_us: int | None = None
        self._retain_at = 0.0
        self._tick_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    # -- what anybody may ask, from any thread -------------------------------------------------

    @property
    def healthy(self) -> bool:
        """False from a failed commit until a later write succeeded again; READY needs it."""
        return self._fault is None and self._thread.is_alive()

    @property
    def fault(self) -> str | None:
        """What is wrong with the ledger, in words, while it is not healthy."""
        return self._fault

    @property
    def tick_ns(self) -> int:
        """Monotonic time of the writer thread's last loop (it loops at least every 100 ms)."""
        return self._tick_ns

    @property
    def open_parts(self) -> int:
        """How many accepted parts have no verdict yet."""
        return len(self._parts)

    @property
    def cursors(self) -> dict[str, dict[str, int]]:
        """consumer -> stream -> acknowledged seq, as of the last commit."""
        return self._cursors

    def last_seq(self, stream: Stream | str) -> int:
        """The newest durable seq of a stored stream (0: none), without touching the disk."""
        return self._last[str(stream)]

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` in the writer thread for every new durable row, in seq order.

        It must be quick and not raise. The bus registers itself: it publishes rows and answers
        triggers, so nobody else has to (and must not).
        """
        self._listeners.append(listener)

    def open_part(self, opening: Opening) -> "Future[PartHandle | Duplicate]":
        """Accept a trigger: PENDING is durable when the future resolves; LedgerError if not."""

        def apply(group: Group) -> Callable[[], PartHandle | Duplicate]:
            answer = group.open(opening)
            return lambda: answer

        return self._write(apply)

    def commit_result(self, draft: ResultDraft) -> "Future[Committed]":
        """Write a part's verdict; the first write wins. Durable when the future resolves.

        A draft that comes after the deadline is written as UNDECIDED/deadline (`replaced`).
        LedgerError: not durable and nothing was sent; the part resolves to ERROR/restart later.
        """
        handed_ns = self._clock().mono_ns
        return self._write(lambda group: group.result(draft, handed_ns), draft.trigger_id)

    def append(self, stream: Stream | str, draft: DescDraft | EventDraft) -> "Future[Committed]":
        """Store and publish a description or an event."""
        wanted = Stream.DESC if isinstance(draft, DescDraft) else Stream.EVENT
        if stream != wanted:
            raise ValueError(f"a {type(draft).__name__} belongs to {wanted}, not {stream}")
        return self._write(lambda group: group.entry(draft))

    def fetch(
        self, stream: Stream | str, epoch: str, from_seq: int, limit: int = 100
    ) -> "Future[FetchPage]":
        """Stored bodies from `from_seq` on; also bounded in bytes, so a page may be shorter."""
        name = str(stream)
        return self._read(lambda store: self._page(store, name, epoch, from_seq, limit))

    def latest(self, stream: Stream | str) -> "Future[bytes | None]":
        """The newest stored body."""
        name = str(stream)
        return self._read(lambda store: store.body_at(name, self._last[name]))

    def get_part(self, part_id: str) -> "Future[tuple[bytes, ...]]":
        """All results of a part id, oldest attempt first."""
        return self._read(lambda store: store.part_bodies(part_id))

    def ack(self, consumer: str, stream: Stream | str, upto_seq: int) -> "Future[int]":
        """Move a durable cursor forward (never back); resolves to where it is now."""

        def apply(group: Group) -> Callable[[], int]:
            at = group.ack(consumer, str(stream), upto_seq)
            return lambda: self._reload_cursors(at)

        return self._write(apply)

    def forget(self, consumer: str) -> "Future[int]":
        """Drop the cursors of a consumer that will not come back; how many were dropped."""

        def apply(_: Group) -> Callable[[], int]:
            gone = self._store.forget(consumer)
            return lambda: self._reload_cursors(gone)

        return self._write(apply)

    def remember(self, key: str, value: str) -> "Future[None]":
        """Keep a decision of the station, over the one before; durable when the future resolves."""

        def apply(_: Group) -> Callable[[], None]:
            self._store.keep_meta(key, value)
            return lambda: None

        return self._write(apply)

    def recall(self, key: str) -> "Future[str | None]":
        """What was remembered under this key."""
        return self._read(lambda store: store.meta(key))

    def retain(self, older_than_us: int) -> "Future[int]":
        """Delete rows that every cursor has acknowledged and that are older (wall, µs).

        Resolves to the size of the first bounded batch; the rest follows by itself, a batch at a
        time between the verdicts. A stream nobody acknowledges is never shortened.
        """

        def apply(_: Group) -> Callable[[], int]:
            count = sum(self._delete_batch(stream, older_than_us) for stream in self._last)
            return lambda: self._more_to_delete(count, older_than_us)

        return self._write(apply)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, stop the thread, close the file, release the lock."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        if self._written.is_set() and self._thread.is_alive():
            log.warning("ledger: folding its WAL takes longer than %s s; left to the next start",
                        timeout_s)  # fmt: skip
        elif self._thread.is_alive():
            raise LedgerError(f"the ledger {self.path} did not finish its writes in {timeout_s} s")
        else:
            self._lock.release()

    # -- the writer thread ---------------------------------------------------------------------

    def _write(
        self, apply: Callable[[Group], Callable[[], Any]], trigger_id: str | None = None
    ) -> Future:
        job = Job(running(), apply, trigger_id)
        return self._enqueue(self._writes, job, job.future)

    def _read(self, query: Callable[[Store], Any]) -> Future:
        future = running()
        return self._enqueue(self._reads, (future, query), future)

    def _enqueue(self, queue: deque, item: object, future: Future) -> Future:
        with self._wake:
            if self._closing:
                future.set_exception(LedgerError(f"the ledger {self.path} is closed"))
                return future
            queue.append(item)
            self._wake.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                if not (self._writes or self._reads or self._closing):
                    self._wake.wait(IDLE_S)
                count = min(len(self._writes), MAX_GROUP)
                jobs = [self._writes.popleft() for _ in range(count)]
                read = self._reads.popleft() if self._reads else None
                ending = self._closing and not (jobs or read)
            self._tick_ns = time.monotonic_ns()
            if ending:
                self._written.set()
                break
            self._turn(jobs, read)
        self._store.close()

    def _turn(self, jobs: list[Job], read: tuple[Future, Callable[[Store], Any]] | None) -> None:
        """Verdicts first, then one question, then housekeeping."""
        if self._fault is not None and time.monotonic() >= self._heal_at:
            self._try_to_heal()
        if jobs:
            self._busy_at = time.monotonic()
            self._commit(jobs)
        if read is not None:
            future, query = read
            resolve(future, lambda: query(self._store))
        if self._retain_us is not None and time.monotonic() >= self._retain_at:
            older_us, self._retain_us = self._retain_us, None
            self.retain(older_us)
        quiet = not jobs and time.monotonic() - self._busy_at > QUIET_S
        if self._commits >= (QUIET_COMMITS if quiet else MOST_COMMITS):
            self._checkpoint()

    def _commit(self, jobs: list[Job]) -> None:
        """One transaction for all waiting jobs: all of it becomes durable and heard, or none."""
        if self._fault is not None:
            return self._fail(jobs, self._fault)
        group = Group(self._store, self._who, self._parts, self._last, self._clock)
        try:
            with self._store.transaction():
                outcomes = [(job, attempt(job, group)) for job in jobs]
            overrun = group.overrun()
            if overrun:
                with self._store.transaction():
                    for index in overrun:
                        group.mark_late(index)
        except Exception as error:  # whatever it was, nothing may be sent
            return self._fail(jobs, f"{type(error).__name__}: {error}")
        self._commits += 1
        self._take_over(group)
        for job, outcome in outcomes:
            resolve(job.future, outcome)
        return None

    def _take_over(self, group: Group) -> None:
        """The commit is durable: remember it, then let it be heard."""
        self._last = group.last
        self._parts.update(group.opened)
        for trigger in group.closed:
            self._parts.pop(trigger, None)
        for row in group.rows:
            for listener in self._listeners:
                try:
                    listener(row)
                except Exception:  # a listener's fault must not cost a verdict
                    log.exception("a ledger listener failed at %s %d", row.stream, row.seq)

    def _fail(self, jobs: list[Job], text: str) -> None:
        if self._fault is None:
            log.error("the ledger %s cannot be written: %s", self.path, text)
            self._fault, self._heal_at = text, time.monotonic() + HEAL_S
        self._lost.update(job.trigger_id for job in jobs if job.trigger_id in self._parts)
        for job in jobs:
            job.future.set_exception(LedgerError(f"not written to {self.path}: {text}"))

    def _try_to_heal(self) -> None:
        """Open the file anew and resolve the parts whose verdict could not be written."""
        self._heal_at = time.monotonic() + HEAL_S
        alive = {k: v for k, v in self._parts.items() if k not in self._lost}
        try:
            self._store.close()
            self._store = Store(self.path, check=False)
            group = heal(self._store, self._who, alive, self._lost, self._clock, str(self._fault))
        except Exception as error:  # still broken: stay unhealthy and try again
            self._fault = f"{type(error).__name__}: {error}"
            return
        log.warning("the ledger %s can be written again", self.path)
        self._parts, self._lost = alive, set()
        self._cursors = self._store.cursors()
        self._take_over(group)
        self._fault = None  # healthy only once every healed verdict was heard

    def _delete_batch(self, stream: str, older_than_us: int) -> int:
        acked = [seqs[stream] for seqs in self._cursors.values() if stream in seqs]
        if not acked:
            return 0
        return self._store.delete_upto(stream, min(acked), older_than_us, DELETE_BATCH)

    def _more_to_delete(self, count: int, older_than_us: int) -> int:
        """The batch is durable; a full one means that there may be more."""
        self._retain_us = older_than_us if count >= DELETE_BATCH else None
        self._retain_at = time.monotonic() + DELETE_EVERY_S
        return count

    def _page(self, store: Store, stream: str, epoch: str, from_seq: int, limit: int) -> FetchPage:
        last = self._last[stream]
        first = store.first_seq(stream) or last + 1
        gone = epoch != self.epoch or from_seq < first
        rows = [] if gone else store.page(stream, from_seq, limit)
        return FetchPage(
            stream=Stream(stream),
            epoch=self.epoch,
            from_seq=from_seq,
            bodies=tuple(data for _, data in rows),
            next_seq=rows[-1][0] + 1 if rows else from_seq,
            first_seq=first,
            last_seq=last,
            gone=gone,
        )

    def _reload_cursors(self, answer: int) -> int:
        self._cursors = self._store.cursors()
        return answer

    def _checkpoint(self) -> None:
        self._commits = 0
        try:
            self._store.checkpoint()
        except Exception as error:
            self._fail([], f"checkpoint: {error}")
