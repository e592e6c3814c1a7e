"""A video file, every frame one part. Frame times come from the file, so replay is paced by it."""

import time
from pathlib import Path

import cv2
import numpy as np

from engines.errors import SourceError
from station.settings import SourceSettings
from station.sources.base import EndOfSource, Frame
from station.sources.decode import digest
from station.sources.folder import printable


class VideoSource:
    """Ends with the file unless `loop`. Decoding is OpenCV's FFMPEG."""

    live = False

    def __init__(self, path: Path, settings: SourceSettings) -> None:
        self.path = path
        self.settings = settings
        self.ends = not settings.loop
        self._capture: cv2.VideoCapture | None = None
        self._index = 0
        self._next_ns = 0

    def open(self) -> None:
        """Raises SourceError where the file is no video or has no frame."""
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise SourceError(f"source {self.path}: not a video this build of OpenCV can read")
        self._capture = capture

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, None when it is not due within the time; EndOfSource at the end."""
        if self._capture is None:
            raise EndOfSource
        if not self._due(timeout_s):
            return None
        ok, image = self._capture.read()
        if not ok and self.settings.loop and self._index:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            ok, image = self._capture.read()
        if not ok:
            if not self._index:
                raise SourceError(f"source {self.path}: the video has no readable frame")
            raise EndOfSource
        self._index += 1
        pixels = np.ascontiguousarray(image, np.uint8)
        return Frame(
            image=pixels,
            raw=None,
            name=f"{printable(self.path.stem)}#{self._index}",
            t_capture_ns=time.monotonic_ns(),
            wall_us=time.time_ns() // 1000,
            index=self._index,
            digest=digest(pixels.data),
        )

    def _due(self, timeout_s: float) -> bool:
        """Wait for the next frame's time, at `fps` where one is set; whether it has come."""
        if not self.settings.fps:
            return True
        now = time.monotonic_ns()
        wait_s = (self._next_ns - now) / 1e9
        time.sleep(min(max(0.0, wait_s), timeout_s))
        if wait_s > timeout_s:
            return False
        self._next_ns = max(self._next_ns, now) + int(1e9 / self.settings.fps)
        return True

    def close(self) -> None:
        """Release the decoder."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
