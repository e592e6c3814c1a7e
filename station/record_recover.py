"""Recordings that were being written when the power went: made whole at the next start.

Everything readable of a `.part` is copied into a proper file with an index, its loss is told, and
only when that copy is durable the `.part` goes. One that lost more than its torn end is kept as
`.damaged` beside the copy: its bytes may be worth more to a person than to this reader.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcap.writer import Writer

from station.record_read import Item, Loss, RecordingReader, open_reader
from station.record_stream import lock, sync_folder

_ENCODINGS = {"protobuf": "protobuf", "json": "jsonschema"}
_CHUNK_MARK = b"\x04\0\0\0zstd"  # in the head of every chunk: a torn end holds one at most


@dataclass(frozen=True)
class Recovered:
    """What became of one `.part`. `path` None: nothing in it was readable. `damaged`: the `.part`
    itself, kept under this name (None: it held nothing more and is gone)."""

    part: Path
    path: Path | None
    messages: int
    loss: Loss | None
    damaged: Path | None = None

    def __str__(self) -> str:
        kept = f"{self.messages} messages kept in {self.path.name}" if self.path else "was empty"
        if self.damaged:
            kept = f"{kept if self.path else 'unreadable'}; the rest is in {self.damaged.name}"
        return f"{self.part.name}: {kept}" + (f"; {self.loss}" if self.loss else "")


def recover(folder: Path, failed: Callable[[Path, str], None]) -> list[Recovered]:
    """Recover every `*.mcap.part` of the folder. What goes wrong with one is told to
    `failed(part, why)`, nothing is raised: a bad file must not keep the station from starting."""
    done = []
    for part in sorted(folder.glob("*.mcap.part")):
        try:
            done.append(recover_file(part))
        except OSError as error:  # the disk, not the file: it is tried again at the next start
            failed(part, f"{error.strerror or error}; it stays as it is")
        except Exception as error:
            failed(part, f"{type(error).__name__}: {error}; kept as {_set_aside(part)}")
    return done


def recover_file(part: Path) -> Recovered:
    """Copy what is readable into `part` without its suffix, then delete it (or set it aside when
    more is in it). OSError: the disk, or it is still being written; `part` is then untouched."""
    with part.open("rb") as held:
        lock(held)
        return _recover(part)


def _recover(part: Path) -> Recovered:
    target = part.with_suffix("")
    scratch = target.with_name(target.name + ".recovering")
    reader = open_reader(part)
    try:
        with scratch.open("wb") as out:
            copied = _copy(reader, out)
            out.flush()
            os.fdatasync(out.fileno())
        if copied:
            scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)
    damaged = None
    if _more_than_a_torn_end(part, reader.loss):
        damaged = _damaged(part)
        part.rename(damaged)
    else:
        part.unlink()
    sync_folder(part.parent)
    return Recovered(part, target if copied else None, copied, reader.loss, damaged)


def _more_than_a_torn_end(part: Path, loss: Loss | None) -> bool:
    """Whether bytes in the middle are wrong: a kill or a power cut costs only the last chunk."""
    if loss is None or loss.bad_chunks:
        return loss is not None
    with part.open("rb") as stream:
        stream.seek(loss.at)
        return stream.read(loss.cut_bytes).count(_CHUNK_MARK) > 1


def _damaged(part: Path) -> Path:
    """The name of a `.part` that is set aside; one that is there already is never replaced."""
    name, number = part.with_suffix(".damaged"), 1
    while name.exists():
        number += 1
        name = part.with_suffix(f".{number}.damaged")
    return name


def _set_aside(part: Path) -> str:
    """Its new name; the old one when even that fails."""
    name = _damaged(part)
    try:
        part.rename(name)
    except OSError:
        return part.name
    return name.name


def _copy(reader: RecordingReader, out: object) -> int:
    writer = Writer(out)  # type: ignore[arg-type]
    writer.start(library="inspection-station (recovered)")
    channels: dict[str, int] = {}
    schemas: dict[str, int] = {}
    copied = 0
    for item in reader:
        if item.topic not in channels:
            channels[item.topic] = _register(writer, reader, item, schemas)
        writer.add_message(
            channels[item.topic], item.log_time, item.data, item.log_time, item.sequence
        )
        copied += 1
    for name, values in reader.metadata.items():
        writer.add_metadata(name, values)
    writer.add_metadata("recovered", {"loss": str(reader.loss or "none")})
    writer.finish()
    return copied


def _register(writer: Writer, reader: RecordingReader, item: Item, schemas: dict[str, int]) -> int:
    if item.schema not in schemas:
        data = reader.schema_data(item.schema)
        schemas[item.schema] = writer.register_schema(
            item.schema, _ENCODINGS.get(item.encoding, ""), data
        )
    return writer.register_channel(item.topic, item.encoding, schemas[item.schema])
