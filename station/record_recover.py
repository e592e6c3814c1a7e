"""Recordings that were being written when the power went: made whole at the next start.

Everything readable of a `.part` is copied into a proper file with an index, its loss is told, and
only when that copy is durable the `.part` goes.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mcap.writer import Writer

from station.record_read import Item, Loss, RecordingReader, open_reader
from station.record_stream import sync_folder

_ENCODINGS = {"protobuf": "protobuf", "json": "jsonschema"}


@dataclass(frozen=True)
class Recovered:
    """What became of one `.part`. `path` None: nothing in it was readable (it was empty)."""

    part: Path
    path: Path | None
    messages: int
    loss: Loss | None

    def __str__(self) -> str:
        kept = f"{self.messages} messages kept in {self.path.name}" if self.path else "was empty"
        return f"{self.part.name}: {kept}" + (f"; {self.loss}" if self.loss else "")


def recover(folder: Path) -> list[Recovered]:
    """Recover every `*.mcap.part` of the folder; OSError passes through."""
    if not folder.is_dir():
        return []
    return [recover_file(part) for part in sorted(folder.glob("*.mcap.part"))]


def recover_file(part: Path) -> Recovered:
    """Copy what is readable into `part` without its suffix, then delete it."""
    target = part.with_suffix("")
    scratch = target.with_name(target.name + ".recovering")
    reader = open_reader(part)
    with scratch.open("wb") as out:
        copied = _copy(reader, out)
        out.flush()
        os.fdatasync(out.fileno())
    if copied:
        scratch.rename(target)
    else:
        scratch.unlink()
    part.unlink()
    sync_folder(part.parent)
    return Recovered(part, target if copied else None, copied, reader.loss)


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
