"""One transaction's worth of ledger work: staged in memory, real only after COMMIT.

`Group` runs inside the caller's transaction. It never touches the ledger's own memory: the caller
takes `opened`, `closed`, `last` and `rows` over when the commit is durable, or throws it all away.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from engines.errors import LedgerError
from station.ledger_state import (
    Identity,
    Moment,
    OpenPart,
    build_entry,
    build_result,
    is_late,
    restart_draft,
)
from station.ledger_store import Store
from station.ledger_types import Committed, Duplicate, PartHandle
from station.schema import (
    DescDraft,
    EventDraft,
    Opening,
    Result,
    ResultDraft,
    Stream,
    body,
)

RESULT = str(Stream.RESULT)


class Group:
    """Applies opens, verdicts, entries and acknowledgements within one transaction."""

    def __init__(
        self,
        store: Store,
        who: Identity,
        parts: Mapping[str, OpenPart],
        last: Mapping[str, int],
        clock: Callable[[], Moment],
    ) -> None:
        self._store, self._who, self._parts, self._clock = store, who, parts, clock
        self.last = dict(last)
        self.opened: dict[str, OpenPart] = {}
        self.closed: set[str] = set()
        self.rows: list[Committed] = []
        self._verdicts: dict[int, tuple[Result, Opening]] = {}

    def open(self, opening: Opening) -> PartHandle | Duplicate:
        """Write PENDING, or tell that the trigger is known."""
        db, trigger = self._store.db, opening.trigger_id
        known = db.execute(
            "SELECT session, seq FROM parts WHERE trigger_id=?", (trigger,)
        ).fetchone()
        if known is not None:
            return Duplicate(trigger_id=trigger, session=known[0], done=known[1] is not None)
        part_id = opening.part_id or trigger
        before = db.execute("SELECT max(attempt) FROM parts WHERE part_id=?", (part_id,)).fetchone()
        part = OpenPart(opening=opening, part_id=part_id, attempt=(before[0] or 0) + 1)
        db.execute(
            "INSERT INTO parts(trigger_id, part_id, attempt, session, opening) VALUES(?,?,?,?,?)",
            (trigger, part_id, part.attempt, opening.session, opening.model_dump_json()),
        )
        self.opened[trigger] = part
        return PartHandle(
            trigger_id=trigger,
            part_id=part_id,
            attempt=part.attempt,
            session=opening.session,
            received_ns=opening.received_ns,
            deadline_ns=opening.deadline_ns,
        )

    def result(self, draft: ResultDraft, handed_ns: int) -> Callable[[], Committed]:
        """Write a verdict unless one is there; the answer is read after the commit."""
        trigger = draft.trigger_id
        part = self.opened.get(trigger) or self._parts.get(trigger)
        if part is None or trigger in self.closed:
            first = self._existing(trigger)
            return lambda: first
        return self._write_result(part, draft, self._clock(), handed_ns)

    def restart(self, part: OpenPart) -> Callable[[], Committed]:
        """Write ERROR/restart for a part that lost its station; late by definition."""
        now = self._clock()
        mono = max(now.mono_ns, part.opening.deadline_ns + 1)
        moment = Moment(mono, now.wall_us)
        return self._write_result(part, restart_draft(part.opening.trigger_id), moment, mono)

    def entry(self, draft: DescDraft | EventDraft) -> Callable[[], Committed]:
        """Append a description or an event."""
        stream = Stream.DESC if isinstance(draft, DescDraft) else Stream.EVENT
        now, seq = self._clock(), self.last[stream] + 1
        data = body(build_entry(self._who, draft, seq=seq, now=now))
        row = Committed(stream=stream, seq=seq, body=data, trigger_id=draft.trigger_id)
        index = self._insert(row, now)
        return lambda: self.rows[index]

    def ack(self, consumer: str, stream: str, upto_seq: int) -> int:
        """Move a cursor forward; LedgerError beyond the newest row."""
        if upto_seq > self.last[stream]:
            raise LedgerError(f"{stream} ends at {self.last[stream]}, {upto_seq} does not exist")
        db = self._store.db
        db.execute(
            "INSERT INTO cursors VALUES(?,?,?) ON CONFLICT(consumer, stream) "
            "DO UPDATE SET upto=max(upto, excluded.upto)",
            (consumer, stream, upto_seq),
        )
        row = db.execute(
            "SELECT upto FROM cursors WHERE consumer=? AND stream=?", (consumer, stream)
        ).fetchone()
        return int(row[0])

    def overrun(self) -> list[int]:
        """Rows whose own commit ended after the deadline though the row says otherwise."""
        now = self._clock().mono_ns
        return [
            index
            for index, (result, opening) in self._verdicts.items()
            if not result.late and is_late(opening, now)
        ]

    def mark_late(self, index: int) -> None:
        """Rewrite a verdict nobody has seen yet as late (in a transaction of its own)."""
        result = self._verdicts[index][0].model_copy(update={"late": True})
        data = body(result)
        self._store.rewrite_result(result.seq, data)
        self.rows[index] = replace(self.rows[index], body=data, late=True)

    def _existing(self, trigger: str) -> Committed:
        row = self._store.db.execute(
            "SELECT seq, body FROM log_result WHERE trigger_id=?", (trigger,)
        ).fetchone()
        if row is None:
            raise LedgerError(f"no part is open for trigger {trigger}")
        return Committed(Stream.RESULT, row[0], bytes(row[1]), trigger, first=False)

    def _write_result(
        self, part: OpenPart, draft: ResultDraft, now: Moment, handed_ns: int
    ) -> Callable[[], Committed]:
        seq = self.last[RESULT] + 1
        result = build_result(self._who, part, draft, seq=seq, now=now, handed_ns=handed_ns)
        row = Committed(
            stream=Stream.RESULT,
            seq=seq,
            body=body(result),
            trigger_id=draft.trigger_id,
            late=result.late,
            replaced=result.verdict is not draft.verdict,
        )
        index = self._insert(row, now)
        self._store.db.execute(
            "UPDATE parts SET seq=?, opening=NULL WHERE trigger_id=?", (seq, draft.trigger_id)
        )
        self.closed.add(draft.trigger_id)
        self._verdicts[index] = (result, part.opening)
        return lambda: self.rows[index]

    def _insert(self, row: Committed, now: Moment) -> int:
        self._store.insert(row.stream, row.seq, now.wall_us, row.trigger_id, row.body)
        self.last[row.stream] = row.seq
        self.rows.append(row)
        return len(self.rows) - 1
