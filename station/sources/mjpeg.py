"""Motion JPEG over HTTP: `multipart/x-mixed-replace`, the stream of most network cameras.

The bytes of each picture are taken as sent; nothing is decoded but to check it. libjpeg fills a
damaged picture with grey and only warns on stderr, so in this child stderr is a file that is
looked at after a cheap check decode (1/8 size): a new warning there is a damaged picture.
"""

import http.client
import os
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from station.settings import SourceSettings
from station.sources.decode import jpeg_fault
from station.sources.worker import Grab, stamp

_CONNECT_S = 5.0
_READ_S = 30.0  # the station notices a stall after 250 ms and kills this process: a last resort
_MAX_JPEG = 64 << 20


class MjpegGrabber:
    """One HTTP connection; OSError when it ends, ValueError when it is no MJPEG."""

    def __init__(self, url: str, settings: SourceSettings) -> None:
        self.url = url
        self._settings = settings
        self._check = WarningCheck()

    def open(self) -> dict[str, Any]:
        """Connect and read the headers."""
        parts = urllib.parse.urlsplit(self.url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname or "", parts.port, timeout=_CONNECT_S)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._connection.request("GET", path, headers=_headers(parts))
            self._response = self._connection.getresponse()
        except http.client.HTTPException as error:
            raise OSError(f"{self.url}: {error or type(error).__name__}") from None
        if self._connection.sock:
            self._connection.sock.settimeout(_READ_S)
        kind_said = self._response.getheader("Content-Type", "")
        if self._response.status != 200:
            raise OSError(f"{self.url}: HTTP {self._response.status} {self._response.reason}")
        if not kind_said.lower().startswith("multipart/"):
            raise ValueError(f"{self.url}: sends {kind_said or 'no type'}, not multipart MJPEG")
        return {"format": "mjpeg", "mismatch": self._not_granted()}

    def _not_granted(self) -> list[str]:
        """What was asked of the camera and no HTTP stream can set or read back."""
        asked = [name for name in ("width", "height") if getattr(self._settings, name)]
        asked += sorted(self._settings.controls)
        return [f"{', '.join(asked)}: set it at the camera, not over HTTP"] if asked else []

    def frames(self) -> Iterator[Grab]:
        """Every part of the stream, stamped when its last byte is here."""
        while True:
            length = self._part_length()
            if length is None:
                return
            raw = self._response.read(length)
            t_ns, wall_us = stamp()
            if len(raw) < length:
                raise OSError("the connection ended inside a picture")
            fault = jpeg_fault(raw) or self._check.fault(raw)
            yield Grab(raw, "encoded", (0, 0, 0), t_ns, wall_us, fault)

    def _part_length(self) -> int | None:
        """Reads one part's header; None at the end of the stream."""
        length = None
        for _ in range(64):
            line = self._response.readline(4096)
            if not line:
                return None
            if line in (b"\r\n", b"\n"):
                if length is not None:
                    return length
                continue
            name, _, value = line.decode("latin-1").partition(":")
            if name.strip().lower() == "content-length":
                length = int(value)
                if not 0 <= length <= _MAX_JPEG:
                    raise ValueError(f"a picture of {length} bytes is announced")
        raise ValueError("the stream's parts have no Content-Length")


def _headers(parts: urllib.parse.SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    secret = f"{parts.username}:{parts.password or ''}".encode()
    return {"Authorization": "Basic " + b64encode(secret).decode()}


class WarningCheck:
    """Decodes at 1/8 size and looks whether libjpeg complained (this process's stderr only)."""

    def __init__(self) -> None:
        import cv2

        self._cv2 = cv2
        self._log = os.memfd_create("station-camera-stderr")
        os.dup2(self._log, 2)

    def fault(self, raw: bytes) -> str | None:
        """Why the entropy-coded data is damaged, or None."""
        import numpy as np

        before = os.lseek(self._log, 0, os.SEEK_END)
        image = self._cv2.imdecode(
            np.frombuffer(raw, np.uint8), self._cv2.IMREAD_REDUCED_GRAYSCALE_8
        )
        after = os.lseek(self._log, 0, os.SEEK_END)
        said = os.pread(self._log, after - before, before).decode(errors="replace").strip()
        if after > 1 << 20:
            os.ftruncate(self._log, 0)
            os.lseek(self._log, 0, os.SEEK_SET)
        if image is None or said:
            return said.splitlines()[0] if said else "cannot be decoded"
        return None
