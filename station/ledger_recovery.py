"""What happens before the ledger's first write, and after a fault: nothing stays PENDING."""

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from engines.errors import LedgerError
from station.ledger_group import Group
from station.ledger_state import Identity, Moment, OpenPart
from station.ledger_store import Corrupt, Store, move_aside
from station.schema import EventDraft, Opening, Result, Severity, body, new_id

Clock = Callable[[], Moment]
log = logging.getLogger("station.ledger")


def open_store(path: Path, line: str, station: str) -> tuple[Store, Identity, Path | None]:
    """Open or create the file; a corrupt one is moved aside first (third item: to where)."""
    moved = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            store = Store(path)
        except Corrupt:
            moved = move_aside(path, datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ"))
            store = Store(path)
    except (OSError, Corrupt) as error:
        raise LedgerError(f"the ledger {path} cannot be made: {error}") from error
    try:
        _fold(store)
        return store, _identify(store, line, station), moved
    except BaseException:
        store.close()
        raise


def _fold(store: Store) -> None:
    """Move into the file what a killed station left in the WAL: one that is killed again and again
    before its first quiet moment would else let it grow for ever (164 MB after 800 kills)."""
    try:
        store.checkpoint("TRUNCATE")
    except sqlite3.Error as error:  # it is read from the WAL as well; a full disk shows later
        log.warning("the WAL of %s could not be folded at the start: %s", store.path, error)


def _identify(store: Store, line: str, station: str) -> Identity:
    """The epoch of this file, made at its creation; LedgerError if it is another station's."""
    owner = json.dumps([line, station])
    if store.meta("epoch") is None:
        with store.transaction() as db:
            db.execute("INSERT INTO meta VALUES('epoch', ?), ('owner', ?)", (new_id(), owner))
    if store.meta("owner") != owner:
        raise LedgerError(
            f"{store.path} is the ledger of {store.meta('owner')}, not of {owner}: every station "
            "keeps its own file"
        )
    return Identity(line, station, str(store.meta("epoch")))


def recover(
    store: Store, who: Identity, last: Mapping[str, int], clock: Clock, moved: Path | None
) -> Group:
    """At start: every PENDING part becomes ERROR/restart, and what was found becomes events."""
    group = Group(store, who, {}, last, clock)
    with store.transaction():
        count = _resolve_pending(store, group, {})
        if moved is not None:
            text = f"the ledger was corrupt; it lies in {moved} and a new one was begun"
            group.entry(EventDraft(kind="ledger_corrupt", severity=Severity.ERROR, text=text))
        if count:
            text = f"{count} parts had no verdict when the station ended; they are ERROR/restart"
            group.entry(
                EventDraft(
                    kind="restart", severity=Severity.WARNING, text=text, data={"parts": count}
                )
            )
    return group


def heal(
    store: Store,
    who: Identity,
    alive: Mapping[str, OpenPart],
    lost: set[str],
    clock: Clock,
    fault: str,
) -> Group:
    """After a fault: resolve the parts whose verdict was not written; `alive` ones go on.

    A lost verdict may yet be found in the file (the commit ended, its confirmation did not):
    nobody has seen it, so it is marked late.
    """
    group = Group(store, who, alive, store.last_seqs(), clock)
    with store.transaction():
        for trigger in sorted(lost):
            _mark_unseen(store, trigger)
        count = _resolve_pending(store, group, alive)
        group.entry(
            EventDraft(
                kind="ledger_recovered",
                severity=Severity.ERROR,
                text=f"the ledger could not be written: {fault}"[:2000],
                data={"parts": count},
            )
        )
    return group


def _resolve_pending(store: Store, group: Group, alive: Mapping[str, OpenPart]) -> int:
    count = 0
    for trigger, part_id, attempt, opening in store.pending():
        if trigger not in alive:
            group.restart(OpenPart(Opening.model_validate_json(opening), part_id, attempt))
            count += 1
    return count


def _mark_unseen(store: Store, trigger: str) -> None:
    row = store.db.execute(
        "SELECT seq, body FROM log_result WHERE trigger_id=?", (trigger,)
    ).fetchone()
    if row is not None:
        result = Result.model_validate_json(bytes(row[1]))
        store.rewrite_result(row[0], body(result.model_copy(update={"late": True})))
