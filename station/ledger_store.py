"""The SQLite side of the ledger: tables, transactions, checks. Knows no threads and no verdicts.

SQLite 3.7.0-3.51.2 can corrupt a WAL shared by two connections, so there is exactly one, and
EXCLUSIVE locking keeps every other program out of the file while the station runs.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import LedgerError
from station.schema import STORED

SCHEMA_VERSION = 1
MAX_PAGE_BYTES = 256 * 1024  # keeps one FETCH under a millisecond of the writer's time
_LOG = """
CREATE TABLE log_{name}(
  seq INTEGER PRIMARY KEY, t_us INTEGER NOT NULL, trigger_id TEXT{unique}, body BLOB NOT NULL);
"""
_TABLES = (
    """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE counters(stream TEXT PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE parts(
  trigger_id TEXT PRIMARY KEY, part_id TEXT NOT NULL, attempt INTEGER NOT NULL, session TEXT,
  opening TEXT, seq INTEGER, UNIQUE(part_id, attempt));
CREATE INDEX parts_seq ON parts(seq);
CREATE TABLE cursors(
  consumer TEXT NOT NULL, stream TEXT NOT NULL, upto INTEGER NOT NULL,
  PRIMARY KEY(consumer, stream));
"""
    # A verdict's first write wins: the database itself refuses a second one for a trigger.
    + _LOG.format(name="result", unique=" NOT NULL UNIQUE")
    + _LOG.format(name="desc", unique="")
    + _LOG.format(name="event", unique="")
)


class Corrupt(Exception):
    """The file is not a healthy SQLite database (never raised for permissions or a full disk)."""


def sync_directory(folder: Path) -> None:
    """Make a created or renamed file's name durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_corrupt(error: sqlite3.Error) -> bool:
    """True for damage of the file itself, in contrast to a full disk or an I/O error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Store:
    """One connection to one ledger file. Not thread-safe; used by one thread at a time.

    Raises Corrupt for a damaged file, LedgerError when it cannot be opened or is not ours.
    """

    def __init__(self, path: Path, *, check: bool = True) -> None:
        self.path = path
        new = not path.exists()
        try:
            self.db = self._connect(check=check)
        except sqlite3.Error as error:
            if is_corrupt(error):
                raise Corrupt(f"{path}: {error}") from error
            raise LedgerError(
                f"the ledger {path} cannot be opened ({error}): check the folder, its rights and "
                "the free space"
            ) from error
        if new:
            sync_directory(path.parent)

    def _connect(self, *, check: bool) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            # Checkpoints run when the line is idle (Ledger), not in the middle of a commit.
            db.execute("PRAGMA wal_autocheckpoint=0")
            if check:
                _quick_check(db, self.path)
            _ensure_tables(db, self.path)
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE ... COMMIT; anything raised inside or by COMMIT rolls back."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def meta(self, key: str) -> str | None:
        """A value of the meta table."""
        row = self.db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep_meta(self, key: str, value: str) -> None:
        """Set a value of the meta table, inside the caller's transaction."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES(?,?)", (key, value))

    def last_seqs(self) -> dict[str, int]:
        """The newest seq of each stored stream (0: none yet)."""
        return dict.fromkeys((str(s) for s in STORED), 0) | dict(
            self.db.execute("SELECT stream, last FROM counters")
        )

    def insert(self, stream: str, seq: int, t_us: int, trigger_id: str | None, body: bytes) -> None:
        """Append one row and move the stream's counter, inside the caller's transaction."""
        self.db.execute(
            f"INSERT INTO log_{stream}(seq, t_us, trigger_id, body) VALUES(?,?,?,?)",
            (seq, t_us, trigger_id, body),
        )
        self.db.execute(
            "INSERT INTO counters VALUES(?,?) ON CONFLICT(stream) DO UPDATE SET last=excluded.last",
            (stream, seq),
        )

    def rewrite_result(self, seq: int, body: bytes) -> None:
        """Replace a verdict's bytes, inside the caller's transaction and before anybody saw it."""
        self.db.execute("UPDATE log_result SET body=? WHERE seq=?", (body, seq))

    def pending(self) -> list[tuple[str, str, int, str]]:
        """(trigger_id, part_id, attempt, opening) of parts without a verdict, oldest first."""
        return self.db.execute(
            "SELECT trigger_id, part_id, attempt, opening FROM parts WHERE seq IS NULL "
            "ORDER BY rowid"
        ).fetchall()

    def first_seq(self, stream: str) -> int | None:
        """The oldest seq still held, None when no row is."""
        row = self.db.execute(f"SELECT min(seq) FROM log_{stream}").fetchone()
        return None if row[0] is None else int(row[0])

    def page(self, stream: str, from_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """(seq, body) from a seq on, bounded in rows and bytes (at least one row if any)."""
        rows: list[tuple[int, bytes]] = []
        size = 0
        for seq, data in self.db.execute(
            f"SELECT seq, body FROM log_{stream} WHERE seq>=? ORDER BY seq LIMIT ?",
            (from_seq, limit),
        ):
            size += len(data)
            if rows and size > MAX_PAGE_BYTES:
                break
            rows.append((seq, bytes(data)))
        return rows

    def body_at(self, stream: str, seq: int) -> bytes | None:
        """One stored body."""
        row = self.db.execute(f"SELECT body FROM log_{stream} WHERE seq=?", (seq,)).fetchone()
        return None if row is None else bytes(row[0])

    def part_bodies(self, part_id: str) -> tuple[bytes, ...]:
        """All results of a part id, oldest attempt first."""
        rows = self.db.execute(
            "SELECT body FROM parts JOIN log_result USING(seq) WHERE part_id=? ORDER BY attempt",
            (part_id,),
        )
        return tuple(bytes(row[0]) for row in rows)

    def forget(self, consumer: str) -> int:
        """Drop a consumer's cursors, inside the caller's transaction; how many there were."""
        return self.db.execute("DELETE FROM cursors WHERE consumer=?", (consumer,)).rowcount

    def cursors(self) -> dict[str, dict[str, int]]:
        """consumer -> stream -> acknowledged seq."""
        found: dict[str, dict[str, int]] = {}
        for consumer, stream, upto in self.db.execute("SELECT * FROM cursors"):
            found.setdefault(consumer, {})[stream] = upto
        return found

    def delete_upto(self, stream: str, upto: int, older_than_us: int, limit: int) -> int:
        """Delete at most `limit` of the oldest rows with seq <= upto that are older; how many."""
        last = self.db.execute(
            f"SELECT max(seq), count(*) FROM (SELECT seq FROM log_{stream} "
            "WHERE seq<=? AND t_us<? ORDER BY seq LIMIT ?)",
            (upto, older_than_us, limit),
        ).fetchone()
        if not last[1]:
            return 0
        # Only a prefix goes: a clock that jumped must not punch holes into the sequence.
        blocked = self.db.execute(
            f"SELECT min(seq) FROM log_{stream} WHERE seq<=? AND t_us>=?", (last[0], older_than_us)
        ).fetchone()[0]
        end = last[0] if blocked is None else blocked - 1
        deleted = self.db.execute(f"DELETE FROM log_{stream} WHERE seq<=?", (end,)).rowcount
        if stream == "result":
            self.db.execute("DELETE FROM parts WHERE seq<=?", (end,))
        return int(deleted)

    def checkpoint(self, how: str = "PASSIVE") -> None:
        """Move the WAL into the database file; TRUNCATE also empties the WAL's own."""
        self.db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()

    def close(self) -> None:
        """Close the connection (SQLite checkpoints and removes the WAL)."""
        self.db.close()


def _quick_check(db: sqlite3.Connection, path: Path) -> None:
    answer = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if answer != "ok":
        raise Corrupt(f"{path}: {answer}")


def _ensure_tables(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version != 0 or tables:
        raise LedgerError(
            f"{path} is not a ledger of this version (schema {version}, expected "
            f"{SCHEMA_VERSION}): name another file or update the station"
        )
    db.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")


def move_aside(path: Path, stamp: str) -> Path:
    """Rename a damaged ledger and its WAL out of the way; where it is now."""
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        piece = path.with_name(path.name + suffix)
        if piece.exists():
            piece.rename(target.with_name(target.name + suffix))
    sync_directory(path.parent)
    return target
