"""Read MCAP as a stream: a file cut anywhere is a normal end, and what was lost is told.

Record by record, nothing is sought and no index is needed. A chunk whose checksum fails, or any
other record that cannot be parsed, is skipped and counted; the records after it are still read.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, McapRecord, Message, Metadata, Schema
from mcap.stream_reader import breakup_chunk

MAGIC = b"\x89MCAP0\r\n"
RECORD_LIMIT = 1 << 30  # a length field above this is damage, not a record


@dataclass(frozen=True)
class Loss:
    """What a reader could not read: bytes after `at` (cut), and chunks that failed their check."""

    at: int
    cut_bytes: int
    bad_chunks: int

    def __str__(self) -> str:
        parts = []
        if self.cut_bytes:
            parts.append(f"cut at byte {self.at}: the last {self.cut_bytes} bytes are unreadable")
        if self.bad_chunks:
            parts.append(f"{self.bad_chunks} damaged block(s) skipped")
        if not parts:
            parts.append(f"ends at byte {self.at} without its index (recorder was killed)")
        return "; ".join(parts)


@dataclass(frozen=True)
class Item:
    """One message with the topic and schema it belongs to."""

    topic: str
    schema: str
    encoding: str
    sequence: int
    log_time: int
    data: bytes


class RecordingReader:
    """Iterate once (closes the stream). `loss` (None: nothing) is known when it has ended.

    `metadata` fills as it goes (the recorder writes it first).
    """

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._size = size
        self._channels: dict[int, Channel] = {}
        self._schemas: dict[int, Schema] = {}
        self._bad_chunks = 0
        self.metadata: dict[str, dict[str, str]] = {}
        self.loss: Loss | None = None
        self.judged = False  # set by who finds a result in it

    def __iter__(self) -> Iterator[Item]:
        good = 0  # end of the last record that was read whole
        whole = False
        if self._stream.read(len(MAGIC)) == MAGIC:
            good = len(MAGIC)
            while (record := self._next()) is not None:
                opcode, payload = record
                good += 9 + len(payload)
                if opcode == Opcode.FOOTER:
                    whole = self._stream.read(len(MAGIC)) == MAGIC
                    break
                yield from self._record(opcode, payload)
        self._stream.close()
        if not whole or self._bad_chunks:
            self.loss = Loss(good, 0 if whole else self._size - good, self._bad_chunks)

    def schema_data(self, name: str) -> bytes:
        """The definition of a schema that was seen so far (b"" if it was not)."""
        return next((s.data for s in self._schemas.values() if s.name == name), b"")

    def _next(self) -> tuple[int, bytes] | None:
        head = self._stream.read(9)
        if len(head) < 9:
            return None
        opcode, length = struct.unpack("<BQ", head)
        if opcode == 0 or length > RECORD_LIMIT:  # 0: zeros that a power cut left, no record
            return None
        payload = self._stream.read(length)
        return (opcode, payload) if len(payload) == length else None

    def _record(self, opcode: int, payload: bytes) -> Iterator[Item]:
        try:
            records = _parsed(opcode, payload)
        except Exception:  # any: one wrong byte raises whatever the parsers and zstd happen to
            self._bad_chunks += 1
            return
        for record in records:
            if isinstance(record, Metadata):
                self.metadata[record.name] = dict(record.metadata)
            elif isinstance(record, Message):
                yield from self._message(record)
            elif isinstance(record, Schema | Channel):
                self._learn(record)

    def _learn(self, record: Schema | Channel) -> None:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        else:
            self._channels[record.id] = record

    def _message(self, message: Message) -> Iterator[Item]:
        channel = self._channels.get(message.channel_id)
        if channel is None:
            return  # its registration was in a damaged chunk, which is already counted
        schema = self._schemas.get(channel.schema_id)
        yield Item(
            topic=channel.topic,
            schema=schema.name if schema else "",
            encoding=channel.message_encoding,
            sequence=message.sequence,
            log_time=message.log_time,
            data=message.data,
        )


def _parsed(opcode: int, payload: bytes) -> Sequence[McapRecord]:
    """The records in this one that matter here; raises anything where it is damaged."""
    data = ReadDataStream(BytesIO(payload))
    if opcode == Opcode.CHUNK:
        chunk = Chunk.read(data)
        if chunk.uncompressed_size > RECORD_LIMIT:
            raise ValueError("a chunk's size is damaged")
        return breakup_chunk(chunk, validate_crc=True)
    if opcode == Opcode.METADATA:
        return [Metadata.read(data)]
    if opcode == Opcode.SCHEMA:
        return [Schema.read(data)]
    if opcode == Opcode.CHANNEL:
        return [Channel.read(data)]
    return [Message.read(data, len(payload))] if opcode == Opcode.MESSAGE else []


def open_reader(path: Path) -> RecordingReader:
    """A reader of a file on disk. OSError passes through."""
    return RecordingReader(path.open("rb"), path.stat().st_size)
