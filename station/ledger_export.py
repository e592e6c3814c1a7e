"""`station ledger`: the journal as a table, and the house-keeping of its cursors.

While the station runs the rows come over FETCH, so nobody else opens its file; when it is stopped
(its lock can be taken) the file is read directly. The same bytes either way.
"""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import InUseError, LedgerError, UsageError
from station.address import reach
from station.client import Client, NoAnswer, Refused
from station.ledger_lock import LockFile
from station.ledger_store import SCHEMA_VERSION, Corrupt, Store
from station.schema import STORED, STREAM_MODELS, Stream
from station.settings import Settings, load_settings

SUFFIXES = (".csv", ".parquet")
COLUMNS_LAST = ("regions", "data")  # long ones, as JSON text, at the right edge


def flatten(body: bytes) -> dict[str, Any]:
    """One body as a flat row: nested objects as `a.b`, lists as JSON text."""
    row: dict[str, Any] = {}
    for key, value in json.loads(body).items():
        if isinstance(value, dict) and key not in COLUMNS_LAST:
            row |= {f"{key}.{inner}": item for inner, item in value.items()}
        elif isinstance(value, dict | list):
            row[key] = json.dumps(value)
        else:
            row[key] = value
    return row


def columns(stream: Stream) -> list[str]:
    """The columns of a stream, in the order of its model; the same in every file."""
    names: list[str] = []
    for name, field in STREAM_MODELS[stream].model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        names += [name] if inner is None else [f"{name}.{key}" for key in inner]
    return sorted(names, key=lambda name: name in COLUMNS_LAST)


def write_csv(bodies: Iterator[bytes], stream: Stream, out: Path) -> int:
    """Write bodies as CSV (RFC 4180, UTF-8); how many rows."""
    count = 0
    with out.open("w", newline="", encoding="utf-8") as stream_out:
        writer = csv.DictWriter(stream_out, columns(stream), extrasaction="ignore")
        writer.writeheader()
        for body in bodies:
            writer.writerow(flatten(body))
            count += 1
    return count


def write_parquet(bodies: Iterator[bytes], stream: Stream, out: Path) -> int:
    """Write bodies as Parquet; UsageError with one sentence when pyarrow is not at hand."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "Parquet needs the package pyarrow, which is not installed: `pip install pyarrow`, or "
            "export CSV"
        ) from None
    names = columns(stream)
    rows = [{name: flat.get(name) for name in names} for flat in map(flatten, bodies)]
    with out.open("wb") as file:  # opened here: pyarrow's own OSError does not say which file
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return len(rows)


@contextmanager
def stored_bodies(ledger: Path, stream: Stream, ctl: str, keys: Path | None) -> Iterator:
    """An iterator of all stored bodies of a stream, oldest first; LedgerError if neither the
    station answers nor the file can be read."""
    check_ledger(ledger)
    try:
        lock = LockFile(_lock_of(ledger))
    except InUseError:
        with Client(ctl, keys=keys, name="export") as client:
            yield _over_fetch(client, stream, ctl)
        return
    try:
        store = _open(ledger)
        try:
            yield _from_file(store, stream)
        finally:
            store.close()
    finally:
        lock.release()


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A file to write instead of `out`, which it becomes when all went well: a table exported
    before is there until then."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(out)
    except OSError as error:
        if error.filename == str(part):
            error.filename, error.filename2 = str(out), None
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def check_ledger(ledger: Path) -> None:
    """LedgerError when there is none, or when the file is something else: no lock is left beside
    it and SQLite does not touch it. A file that a station has or had open is not looked into."""
    if not ledger.exists():
        raise LedgerError(f"there is no ledger at {ledger}: name it with --ledger")
    if _lock_of(ledger).exists() or ledger.with_name(ledger.name + "-wal").exists():
        return
    with ledger.open("rb") as file:
        head = file.read(64)
    ours = int.from_bytes(head[60:64], "big") == SCHEMA_VERSION  # SQLite's user_version
    if not (head.startswith(b"SQLite format 3\0") and ours):
        raise LedgerError(f"{ledger} is not a ledger of this version: name it with --ledger")


def _lock_of(ledger: Path) -> Path:
    return ledger.with_name(ledger.name + ".lock")


def _open(ledger: Path) -> Store:
    try:
        return Store(ledger)
    except Corrupt as error:
        raise LedgerError(f"{error}: a starting station moves it aside") from None


def _from_file(store: Store, stream: Stream) -> Iterator[bytes]:
    seq = 1
    while rows := store.page(str(stream), seq, 1000):
        for _, body in rows:
            yield body
        seq = rows[-1][0] + 1


def _over_fetch(client: Client, stream: Stream, ctl: str) -> Iterator[bytes]:
    try:
        yield from client.fetch_all(stream)
    except (NoAnswer, Refused) as error:
        raise LedgerError(
            f"a station holds the ledger but gives no rows at {ctl} ({error}): check --ctl and "
            "--key"
        ) from None


ledger_app = typer.Typer(help="The durable journal: export its rows, drop a consumer's cursors.")
LedgerPath = Annotated[
    Path | None, typer.Option("--ledger", help="The ledger file (default: ledger.path).")
]
CtlAddress = Annotated[
    str | None, typer.Option("--ctl", help="tcp://host:port of the running station's ROUTER.")
]
Config = Annotated[Path | None, typer.Option("--config", help="station.toml to read.")]
KeyFile = Annotated[Path | None, typer.Option("--key", help="A client key file (CURVE).")]


@ledger_app.command("export")
def _export(
    out: Path,
    stream: Annotated[str, typer.Option(help="result, desc or event.")] = "result",
    ledger: LedgerPath = None,
    ctl: CtlAddress = None,
    key: KeyFile = None,
    config: Config = None,
) -> None:
    """Write a stream to OUT: CSV, or Parquet when OUT ends in .parquet."""
    if stream not in STORED:
        raise UsageError(f"{stream!r} is not stored: result, desc or event")
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{out}: name a file that ends in {' or '.join(SUFFIXES)}")
    settings: Settings = load_settings(config)
    kind = Stream(stream)
    ledger = ledger or settings.ledger.path
    ctl = ctl or reach(settings.bus.host, settings.bus.ctl_port)
    write = write_parquet if out.suffix.lower() == ".parquet" else write_csv
    with stored_bodies(ledger, kind, ctl, key) as bodies, whole(out) as part:
        count = write(bodies, kind, part)
    typer.echo(f"{out}: {count} rows of {kind}")


@ledger_app.command("forget")
def _forget(consumer: str, ledger: LedgerPath = None, config: Config = None) -> None:
    """Drop the cursors of a consumer that will not come back (the station must be stopped): its
    missing acknowledgements no longer hold old rows back."""
    ledger = ledger or load_settings(config).ledger.path
    check_ledger(ledger)
    lock = LockFile(_lock_of(ledger))
    try:
        store = _open(ledger)
        with store.transaction():
            count = store.forget(consumer)
        store.close()
    finally:
        lock.release()
    typer.echo(f"{consumer}: {count} cursors dropped")
