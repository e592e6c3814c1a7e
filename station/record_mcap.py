"""One MCAP file of parts: pictures and boxes as Foxglove messages, bodies as they went out.

Topics: `/camera` the judged frames, `/camera/before` frames of the pre-trigger ring,
`/camera/boxes` annotations, `/result`, `/desc`, `/event` the ISP/1 bodies byte for byte. A part's
messages share one MCAP `sequence`, the `seq` of its result. Times are wall nanoseconds (labels).
"""

import json
from typing import Any

from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.ImageAnnotations_pb2 import ImageAnnotations
from foxglove_schemas_protobuf.PointsAnnotation_pb2 import PointsAnnotation
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from mcap.writer import CompressionType, Writer

from station.record_stream import SyncedStream
from station.schema import STREAM_MODELS, Result, Stream
from station.sources.base import Frame

LIBRARY = "inspection-station"
CAMERA, BEFORE, BOXES = "/camera", "/camera/before", "/camera/boxes"
FRAME_ID = "camera"
CHUNK = 256 << 10  # compressed together; also what a kill can cost besides the last second
MESSAGE_BYTES = 64  # MCAP's own bytes of a message and its index entry, rounded up
SUMMARY = 64 << 10  # what `finish` adds: schemas and channels again, statistics, indexes
_COLOURS = {"OK": (0.1, 0.7, 0.3), "NG": (0.9, 0.1, 0.1)}  # any other verdict is amber
_AMBER = (0.95, 0.6, 0.05)


def descriptor_set(message: type[Message]) -> bytes:
    """A FileDescriptorSet with every file `message` needs: MCAP's schema data for protobuf."""
    found: dict[str, FileDescriptor] = {}

    def walk(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            walk(dependency)
        found.setdefault(file.name, file)

    walk(message.DESCRIPTOR.file)
    files = FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(files.file.add())
    return files.SerializeToString()


def image_format(raw: bytes | None) -> str | None:
    """ "jpeg" or "png" if these bytes are one (by signature), else None."""
    if raw is None:
        return None
    if raw.startswith(b"\xff\xd8"):
        return "jpeg"
    return "png" if raw.startswith(b"\x89PNG\r\n\x1a\n") else None


def _stamp(wall_us: int) -> Timestamp:
    return Timestamp(seconds=wall_us // 1_000_000, nanos=wall_us % 1_000_000 * 1000)


def image_message(frame: Frame) -> Message | None:
    """The frame without loss: its original bytes if there are any, else its pixels.

    None when there is nothing to keep (a fault that left neither bytes nor pixels).
    """
    kind = image_format(frame.raw)
    if frame.raw is not None and (kind is not None or frame.image is None):
        return CompressedImage(
            timestamp=_stamp(frame.wall_us),
            frame_id=FRAME_ID,
            data=frame.raw,
            format=kind or "jpeg",  # damaged bytes are kept as they came, to fail again in replay
        )
    if frame.image is None:
        return None
    height, width = frame.image.shape[:2]
    grey = frame.image.ndim == 2
    return RawImage(
        timestamp=_stamp(frame.wall_us),
        frame_id=FRAME_ID,
        width=width,
        height=height,
        encoding="mono8" if grey else "bgr8",
        step=width * (1 if grey else 3),
        data=frame.image.tobytes(),
    )


def boxes_message(result: Result, wall_us: int) -> ImageAnnotations:
    """The verdict as text and the regions as outlined boxes, in original pixels."""
    red, green, blue = _COLOURS.get(result.verdict.value, _AMBER)
    colour = {"r": red, "g": green, "b": blue, "a": 1.0}
    stamp = _stamp(wall_us)
    message = ImageAnnotations()
    for region in result.regions:
        corners = [
            (region.x, region.y),
            (region.x + region.w, region.y),
            (region.x + region.w, region.y + region.h),
            (region.x, region.y + region.h),
        ]
        box = message.points.add(timestamp=stamp, thickness=3.0)
        box.type = PointsAnnotation.LINE_LOOP
        box.outline_color.MergeFrom(type(box.outline_color)(**colour))
        for x, y in corners:
            box.points.add(x=float(x), y=float(y))
    text = message.texts.add(timestamp=stamp, font_size=18.0)
    text.text = f"{result.verdict.value} {result.reason.value} {result.part_id}"
    text.position.x, text.position.y = 8.0, 24.0
    text.text_color.MergeFrom(type(text.text_color)(**colour))
    return message


class McapFile:
    """A recording being written. Every method may raise OSError."""

    def __init__(self, stream: SyncedStream, identity: dict[str, str]) -> None:
        self.stream = stream
        self.messages = 0
        self._pending = 0  # bytes of messages in the chunk that is not yet in the stream
        self._recipes: set[tuple[str, str, str]] = set()  # whose hashes stand in the metadata
        self._writer = Writer(stream, CHUNK, CompressionType.ZSTD)  # type: ignore[arg-type]
        self._writer.start(profile="", library=LIBRARY)
        self._writer.add_metadata("station", {key: str(value) for key, value in identity.items()})
        self._channels = self._register()

    def _register(self) -> dict[str, int]:
        writer = self._writer
        schemas: dict[type[Message], int] = {
            kind: writer.register_schema(
                kind.DESCRIPTOR.full_name, "protobuf", descriptor_set(kind)
            )
            for kind in (CompressedImage, RawImage, ImageAnnotations)
        }
        channels = {}
        for topic in (CAMERA, BEFORE):
            for kind in (CompressedImage, RawImage):
                name = f"{topic}:{kind.DESCRIPTOR.name}"
                # Two encodings never share a channel; the raw twin has its own topic.
                path = topic if kind is CompressedImage else f"{topic}/raw"
                channels[name] = writer.register_channel(path, "protobuf", schemas[kind])
        channels[BOXES] = writer.register_channel(BOXES, "protobuf", schemas[ImageAnnotations])
        for stream in (Stream.RESULT, Stream.DESC, Stream.EVENT):
            model = STREAM_MODELS[stream]
            text = json.dumps(model.model_json_schema()).encode()
            schema = writer.register_schema(f"isp1.{model.__name__}", "jsonschema", text)
            channels[stream.value] = writer.register_channel(f"/{stream.value}", "json", schema)
        return channels

    @property
    def size(self) -> int:
        """Bytes of the file with what is still to be written (before compression)."""
        return self.stream.size + self._pending

    def image(self, frame: Frame, *, before: bool = False, seq: int = 0) -> None:
        """A judged frame, or one of the ring (`before`)."""
        message = image_message(frame)
        if message is not None:
            channel = f"{BEFORE if before else CAMERA}:{message.DESCRIPTOR.name}"
            self._add(channel, frame.wall_us, message.SerializeToString(), seq)

    def result(self, result: Result, body: bytes, wall_us: int) -> None:
        """The boxes, then the body. The body comes last: a reader that has it has the part."""
        self._judged_by(result)
        boxes = boxes_message(result, wall_us)
        self._add(BOXES, wall_us, boxes.SerializeToString(), result.seq)
        self._add(Stream.RESULT.value, wall_us, body, result.seq)

    def _judged_by(self, result: Result) -> None:
        """Metadata of each recipe, written before its first part: a file may hold several."""
        who = (result.recipe, result.recipe_sha, result.bundle_sha)
        if who not in self._recipes:
            self._recipes.add(who)
            values = dict(zip(("recipe", "recipe_sha", "bundle_sha"), who, strict=True))
            self._writer.add_metadata(f"recipe {result.recipe} {result.recipe_sha[:8]}", values)

    def body(self, stream: str, body: bytes) -> None:
        """A description or an event."""
        fields: dict[str, Any] = json.loads(body)
        self._add(stream, int(fields["t_us"]), body, int(fields["seq"]))

    def sync_due(self) -> bool:
        """Whether the last sync is a second or 64 MiB ago."""
        return self.stream.due(self._pending > 0)

    def sync(self) -> None:
        """End the chunk in progress and make all of it durable."""
        self._writer.flush()
        self.stream.sync()
        self._pending = 0

    def finish(self) -> None:
        """Write the index and give the file its final name."""
        self._writer.finish()
        self.stream.finish()

    def _add(self, channel: str, wall_us: int, data: bytes, seq: int) -> None:
        nanoseconds = wall_us * 1000
        before = self.stream.size
        self._writer.add_message(
            self._channels[channel], nanoseconds, data, nanoseconds, seq & 0xFFFFFFFF
        )
        self.messages += 1
        if self.stream.size != before:
            self._pending = 0  # the chunk was full and went out, this message with it
        else:
            self._pending += len(data) + MESSAGE_BYTES


def picture_size(frame: Frame | None) -> int:
    """An upper guess of the bytes a frame takes in a file (pixels before compression)."""
    if frame is None:
        return 0
    if image_format(frame.raw) is not None and frame.raw is not None:
        return len(frame.raw)
    return int(frame.image.nbytes) if frame.image is not None else len(frame.raw or b"")
