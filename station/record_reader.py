"""A recording as a source of frames: what was judged is judged again.

Every recorded part becomes one frame, in recorded order, with the recorded result in its `tags`;
`verdict(index)` gives the whole recorded body for `station replay --verify`. Parts recorded
without a picture come as a frame with a fault, so that their verdict can be compared too.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from engines.errors import SourceError
from station.record_read import Item, Loss, RecordingReader, open_reader
from station.schema import Reason
from station.sources.base import EndOfSource, Frame
from station.sources.decode import digest

NO_PICTURE = "recorded without a picture"
_TAGS = (
    *("trigger_id", "part_id", "attempt", "verdict", "reason", "score", "threshold"),
    *("recipe", "recipe_sha", "bundle_sha"),
)


def frame_of(item: Item) -> Frame:
    """An image message as a frame: original bytes undecoded, or raw pixels (BGR or grey).

    What cannot be read (another program's file may hold anything) is a frame with a fault.
    """
    wall_us = item.log_time // 1000
    try:
        if item.schema == "foxglove.CompressedImage":
            raw = CompressedImage.FromString(item.data).data
            return _frame(None, raw, wall_us, digest(raw))
        image = _pixels(RawImage.FromString(item.data))
    except (DecodeError, ValueError) as error:
        fault = f"recorded picture cannot be read ({item.schema}: {error})"
        return replace(_frame(None, None, wall_us, 0), fault=fault)
    return _frame(image, None, wall_us, digest(image.tobytes()))


def _pixels(message: RawImage) -> NDArray[np.uint8]:
    """BGR (H,W,3). ValueError: another encoding, or not as many bytes as its size says."""
    channels = {"bgr8": (3,), "mono8": ()}.get(message.encoding)
    if channels is None:
        raise ValueError(f"encoding {message.encoding!r} is neither bgr8 nor mono8")
    if not (message.height and message.width):
        raise ValueError("no pixels")
    image = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, *channels)
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return image


def _frame(image: Any, raw: bytes | None, wall_us: int, payload: int) -> Frame:
    return Frame(
        image=image, raw=raw, name="", t_capture_ns=0, wall_us=wall_us, index=0, digest=payload
    )


def parts(reader: RecordingReader) -> Iterator[tuple[Frame, dict[str, Any]]]:
    """(frame, recorded result) of each part, in order; {} for a frame that was never judged."""
    picture: tuple[int, Frame] | None = None
    for item in reader:
        if item.topic in {"/camera", "/camera/raw"}:
            if picture is not None:
                yield picture[1], {}
            picture = item.sequence, frame_of(item)
        elif item.topic == "/result":
            body = _body(item.data)
            reader.judged = True
            if picture is not None and picture[0] == item.sequence:
                frame = picture[1]
            else:
                frame = _frame(None, None, item.log_time // 1000, 0)
                frame = replace(frame, fault=NO_PICTURE)
            picture = None
            yield frame, body
    # The last picture of a cut file may have lost its verdict; one of `station record` had none.
    if picture is not None and not (reader.loss and reader.judged):
        yield picture[1], {}


def _body(data: bytes) -> dict[str, Any]:
    """A recorded result; {} for what another program wrote under that name."""
    try:
        body = json.loads(data)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def files_of(path: Path) -> list[Path]:
    """The recording itself, or all whole ones of a folder in time order (their names)."""
    return sorted(path.glob("*.mcap")) if path.is_dir() else [path]


class McapSource:
    """Source of a recording (file, or folder of files). `speed` 0: as fast as they are judged.

    speed 1 keeps the recorded pauses, 2 halves them, and so on.
    """

    live = False
    ends = True

    def __init__(self, path: Path, speed: float = 0.0) -> None:
        self.path = Path(path)
        self.speed = speed
        self.metadata: dict[str, dict[str, str]] = {}
        self.losses: dict[str, Loss] = {}
        self._verdicts: dict[int, dict[str, Any]] = {}
        self._parts: Iterator[tuple[Frame, dict[str, Any]]] = iter(())
        self._index = 0
        self._held: tuple[Frame, dict[str, Any]] | None = None
        self._origin: tuple[int, int] | None = None  # (recorded us, monotonic ns) of the first

    @property
    def loss(self) -> Loss | None:
        """What could not be read so far; complete after EndOfSource."""
        return next(iter(self.losses.values()), None)

    def open(self) -> None:
        """Find the first part. SourceError: not there, not MCAP, or no part in it."""
        if not self.path.exists():
            raise SourceError(f"source {self.path}: no such recording; check the path")
        self._parts = self._read_files()
        self._held = next(self._parts, None)
        if self._held is None:
            told = f" ({self.loss})" if self.loss else ""
            raise SourceError(f"source {self.path}: no recorded part in it{told}")

    def _read_files(self) -> Iterator[tuple[Frame, dict[str, Any]]]:
        for file in files_of(self.path):
            try:
                reader = open_reader(file)
            except OSError as error:
                raise SourceError(f"source {file}: cannot be read ({error.strerror})") from None
            yield from parts(reader)
            for name, values in reader.metadata.items():
                self.metadata.setdefault(name, values)
            if reader.loss is not None:
                self.losses[file.name] = reader.loss

    @property
    def recipe(self) -> str | None:
        """The recipe of the next part's recorded verdict; None without one."""
        return self._held[1].get("recipe") if self._held else None

    def read(self, timeout_s: float) -> Frame | None:
        """The next part's frame; None while its recorded pause lasts; EndOfSource at the end."""
        if self._held is None:
            raise EndOfSource
        frame, body = self._held
        if not self._wait(frame.wall_us, timeout_s):
            return None
        self._held = next(self._parts, None)
        self._index += 1
        self._verdicts[self._index] = body
        tags = {key: str(body[key]) for key in _TAGS if body.get(key) is not None}
        return replace(
            frame,
            name=str(body.get("part_id", f"frame-{self._index:06d}")),
            t_capture_ns=time.monotonic_ns(),
            index=self._index,
            # What a camera did cannot be seen in its pictures alone: the verdict tells it.
            repeat=tags.get("reason") == Reason.STALE_FRAME,
            was_refused=tags.get("reason") == Reason.CAMERA,
            tags=tags,
        )

    def verdict(self, index: int) -> dict[str, Any] | None:
        """The recorded result of the frame with this index, as it stood on the bus."""
        return self._verdicts.get(index)

    def _wait(self, wall_us: int, timeout_s: float) -> bool:
        if self.speed <= 0:
            return True
        if self._origin is None:
            self._origin = wall_us, time.monotonic_ns()
        due = self._origin[1] + int((wall_us - self._origin[0]) * 1000 / self.speed)
        wait_s = (due - time.monotonic_ns()) / 1e9
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return False
        time.sleep(max(0.0, wait_s))
        return True

    def close(self) -> None:
        """Forget the file; safe to call twice."""
        self._parts = iter(())
        self._held = None
