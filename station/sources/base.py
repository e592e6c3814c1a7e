"""What every source of frames is: a camera, a stream, a folder, a video, a recording."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from station.settings import SourceSettings


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture as it came.

    image: BGR uint8 (H,W,3), None until decoded or where `fault` is set. raw: the original encoded
    bytes (JPEG, PNG) where the source has them: this is what a recording keeps. t_capture_ns:
    monotonic, stamped after the grab. wall_us: label only. index: counts up per source, gaps are
    frames lost before us. fault: None, or one sentence why there is no usable picture.
    digest: 64-bit hash of the payload (a repeated frame is recognised by it). repeat: it carries
    the very payload of the one before, which a live camera never does (OpenCV #5221, #14044).
    was_refused: recorded of a part that was refused as its camera's fault: it is held to the
    enrolled size again, which other recorded pictures, perhaps of a folder, are not.
    """

    image: NDArray[np.uint8] | None
    raw: bytes | None
    name: str
    t_capture_ns: int
    wall_us: int
    index: int
    fault: str | None = None
    digest: int = 0
    repeat: bool = False
    was_refused: bool = False
    tags: dict[str, str] = field(default_factory=dict)  # a recording's trigger id and the like


class EndOfSource(Exception):
    """A source that ends has ended. Control flow, not a failure."""


@runtime_checkable
class Source(Protocol):
    """`live`: frames come by themselves and may repeat or stall. `ends`: raises EndOfSource."""

    live: bool
    ends: bool

    def open(self) -> None:
        """Raises SourceError (exit 4) when it is not there or empty."""
        ...

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, None when none came in time; EndOfSource at the end."""
        ...

    def close(self) -> None:
        """Release everything within a second; safe to call twice."""
        ...


def open_source(spec: str, settings: SourceSettings | None = None) -> Source:
    """Make (not yet open) the source that `spec` names.

    "0" or "/dev/v4l/...": camera; http://, rtsp://: stream; *.mcap: recording; a folder; a video
    file. Raises SourceError for what is none of them.
    """
    from station.sources.choose import choose

    return choose(spec, settings or SourceSettings(spec=spec))
