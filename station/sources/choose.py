"""What a source's name means: one place, used by `run`, `replay`, `enroll` and `doctor`."""

import re
from pathlib import Path

from engines.errors import SourceError
from station.settings import SourceSettings
from station.sources.base import Source

VIDEO = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mjpeg", ".mjpg", ".mpg", ".ts"}
# Whole, as it is written, and as recovery sets aside what it cannot read: all open alike.
_RECORDING = re.compile(r"\.mcap(\.part|(\.\d+)?\.damaged)?", re.IGNORECASE)
STREAM = {"http", "https", "rtsp", "rtsps"}


def choose(spec: str, settings: SourceSettings) -> Source:
    """The (unopened) source of `spec`; SourceError (exit 4) for what is none of them."""
    if not spec.strip():  # as a path it would be the working directory, with all below it
        raise SourceError("the source is empty: name a camera, folder, video or address")
    scheme = spec.split("://", 1)[0].lower() if "://" in spec else ""
    if scheme in STREAM or spec.isdigit() or spec.startswith("/dev/"):
        from station.sources.camera import CameraSource

        return CameraSource(spec, settings)
    if scheme:
        raise SourceError(
            f"source {spec!r}: {scheme}:// is not known; use http, https, rtsp, "
            "a folder, a video file, a camera number or /dev/v4l/by-id/..."
        )
    path = Path(spec).expanduser()
    if not path.exists():
        raise SourceError(f"source {path}: no such folder or file; check the path")
    return _from_path(path, settings)


def is_recording(path: Path) -> bool:
    """By its name: a recording, whole or cut."""
    return _RECORDING.fullmatch(path.name[path.name.lower().rfind(".mcap") :]) is not None


def _from_path(path: Path, settings: SourceSettings) -> Source:
    if path.is_dir() or path.suffix.lower() in {".txt", ".jsonl"}:
        from station.sources.folder import FolderSource

        return FolderSource(path, settings)
    if is_recording(path):
        from station.record_reader import McapSource  # type: ignore[import-not-found]

        source: Source = McapSource(path)
        return source
    if path.suffix.lower() in VIDEO:
        from station.sources.video import VideoSource

        return VideoSource(path, settings)
    raise SourceError(
        f"source {path}: neither a folder of pictures, a list (.txt, .jsonl), a recording (.mcap) "
        f"nor a video ({', '.join(sorted(VIDEO))})"
    )
