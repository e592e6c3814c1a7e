"""Cameras and streams through OpenCV: V4L2 (raw MJPG bytes where it can) and RTSP (FFMPEG).

Runs in the camera child only: V4L2's read blocks 10 s on a stalled camera and FFMPEG's 30 s, and
both have hung for ever; the station kills the child instead of waiting.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from station.settings import SourceSettings
from station.sources.decode import jpeg_fault
from station.sources.mjpeg import WarningCheck
from station.sources.worker import Grab, stamp

_OPEN_MS, _READ_MS = 5000, 5000
_CONTROLS = {
    "exposure": cv2.CAP_PROP_EXPOSURE,
    "auto_exposure": cv2.CAP_PROP_AUTO_EXPOSURE,
    "gain": cv2.CAP_PROP_GAIN,
    "white_balance": cv2.CAP_PROP_WB_TEMPERATURE,
    "auto_white_balance": cv2.CAP_PROP_AUTO_WB,
    "brightness": cv2.CAP_PROP_BRIGHTNESS,
    "contrast": cv2.CAP_PROP_CONTRAST,
    "focus": cv2.CAP_PROP_FOCUS,
    "auto_focus": cv2.CAP_PROP_AUTOFOCUS,
}


class CvGrabber:
    """One cv2.VideoCapture; OSError when it cannot be opened or read."""

    def __init__(self, spec: str, settings: SourceSettings, restore: dict[str, float]) -> None:
        self.spec = spec
        self.settings = settings
        self.restore = restore
        self.network = "://" in spec
        self._check = WarningCheck()

    def open(self) -> dict[str, Any]:
        """Open, set the format and controls, read them back."""
        if self.network:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS]
            limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]
            self._capture = cv2.VideoCapture(self.spec, cv2.CAP_FFMPEG, limits)
        else:
            device = f"/dev/video{self.spec}" if self.spec.isdigit() else self.spec
            if not Path(device).exists():
                raise OSError(f"no camera {self.spec} ({device} does not exist)")
            self._capture = cv2.VideoCapture(str(Path(device).resolve()), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise OSError(f"camera {self.spec} cannot be opened (in use, or not a camera)")
        return self._set_up()

    def _set_up(self) -> dict[str, Any]:
        capture, want = self._capture, self.settings
        if not self.network:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
            for prop, value in (
                (cv2.CAP_PROP_FRAME_WIDTH, want.width),
                (cv2.CAP_PROP_FRAME_HEIGHT, want.height),
                (cv2.CAP_PROP_FPS, want.fps),
            ):
                if value:
                    capture.set(prop, value)
        before = {n: capture.get(_CONTROLS[n]) for n in want.controls if n in _CONTROLS}
        self._restore()
        wrong = self._controls()
        if want.width and int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)) != want.width:
            wrong.append(f"width {int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))} not {want.width}")
        if want.height and int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) != want.height:
            wrong.append(f"height {int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))} not {want.height}")
        return {"mismatch": wrong, "before": before, "fps": float(capture.get(cv2.CAP_PROP_FPS))}

    def _restore(self) -> None:
        """Give back what an earlier recipe set; automatics last, they take over what they rule."""
        for name, value in sorted(
            self.restore.items(), key=lambda item: item[0].startswith("auto_")
        ):
            self._capture.set(_CONTROLS[name], value)

    def _controls(self) -> list[str]:
        """Set each control and read it back; what does not hold."""
        wrong = []
        # A camera refuses an exposure while it exposes by itself: automatics first.
        for name, value in sorted(
            self.settings.controls.items(), key=lambda item: not item[0].startswith("auto_")
        ):
            prop = _CONTROLS.get(name)
            if prop is None:
                wrong.append(f"control {name!r} is not known ({', '.join(_CONTROLS)})")
                continue
            self._capture.set(prop, value)
            got = self._capture.get(prop)
            if abs(got - value) > 1e-3 * max(1.0, abs(value)):
                wrong.append(f"{name} is {got:g}, not {value:g}")
        return wrong

    def frames(self) -> Iterator[Grab]:
        """Frames for ever, stamped after the grab and before the decode."""
        while True:
            if not self._capture.grab():
                raise OSError(f"camera {self.spec} delivers no frame")
            t_ns, wall_us = stamp()
            ok, image = self._capture.retrieve()
            if not ok:
                yield Grab(b"", "encoded", (0, 0, 0), t_ns, wall_us, "the frame cannot be decoded")
                continue
            if image is None:  # a driver may hand out a buffer with nothing in it
                yield Grab(b"", "encoded", (0, 0, 0), t_ns, wall_us, "the frame is empty")
                continue
            grab = _grab(np.ascontiguousarray(image), t_ns, wall_us)
            if grab.kind == "encoded" and grab.fault is None:
                grab = replace(grab, fault=self._check.fault(bytes(grab.payload)))
            yield grab


def _grab(image: np.ndarray, t_ns: int, wall_us: int) -> Grab:
    """MJPG arrives as one row of bytes, YUYV with two channels, anything else as BGR."""
    if image.dtype != np.uint8:
        return Grab(b"", "encoded", (0, 0, 0), t_ns, wall_us, f"pixels of type {image.dtype}")
    if 1 in image.shape[:2] and image.size > 2:
        raw = image.tobytes().rstrip(b"\0")
        return Grab(raw, "encoded", (0, 0, 0), t_ns, wall_us, jpeg_fault(raw))
    if image.ndim == 3 and image.shape[2] == 2:
        image = cv2.cvtColor(image, cv2.COLOR_YUV2BGR_YUYV)
    elif image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    h, w, c = image.shape
    return Grab(image.tobytes(), "bgr", (h, w, c), t_ns, wall_us)
