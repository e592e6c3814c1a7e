"""Encoded bytes to pixels, strictly: a picture that is not whole is a fault, never a picture.

OpenCV fills what a damaged JPEG lacks with grey and says nothing, so the marker structure is
walked first: start and end of image, segment lengths, no stray marker inside a scan, restart
markers in their order, and the size the header promises is the size that comes out. Wrong bits that
are still a valid code are seen by nobody; where libjpeg itself complains of them a camera's child
notices (`mjpeg.WarningCheck`), for files it is lost.
"""

import re
import zlib
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from station.sources.base import Frame

_STRAY = re.compile(rb"\xff[^\x00\xff]")  # any marker inside entropy-coded data
_PNG = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def digest(payload: Buffer) -> int:
    """64 bits of a payload: crc32 and length. A collision is taken for a repeat: the safe side."""
    view = memoryview(payload)
    return zlib.crc32(view) | (view.nbytes & 0xFFFFFFFF) << 32


def jpeg_fault(raw: bytes) -> str | None:
    """Why these bytes are not one whole JPEG, or None."""
    data = raw.rstrip(b"\0")  # cameras pad their buffers
    if not data.startswith(b"\xff\xd8"):
        return "not a JPEG (no start-of-image marker)"
    if not data.endswith(b"\xff\xd9"):
        return f"truncated JPEG ({len(raw)} bytes, no end-of-image marker)"
    return _walk(data)


def _walk(data: bytes) -> str | None:
    at, size, scans = 2, None, 0
    while at < len(data) - 1:
        if data[at] != 0xFF:
            return f"corrupt JPEG (no marker at byte {at})"
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0xD9:
            return None if size and scans else "corrupt JPEG (no picture before its end)"
        elif marker in _STANDALONE:
            at += 2
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2 or at + 2 + length > len(data):
                return f"corrupt JPEG (segment {marker:02x} at byte {at} runs past the end)"
            size = size or marker in _SOF
            at += 2 + length
            if marker == 0xDA:
                scans += 1
                at = _scan_end(data, at)
                if at < 0:
                    return "corrupt JPEG (restart markers out of order)"
    return "truncated JPEG (ends inside a segment)"


def _scan_end(data: bytes, at: int) -> int:
    """Byte of the marker that ends this scan; -1 when restart markers are out of order."""
    expected = 0
    for found in _STRAY.finditer(data, at):
        marker = data[found.start() + 1]
        if not 0xD0 <= marker <= 0xD7:
            return found.start()
        if marker != 0xD0 + expected:
            return -1
        expected = (expected + 1) % 8
    return len(data)


def png_fault(raw: bytes) -> str | None:
    """Why these bytes are not one whole PNG, or None. libpng would say so on stderr, in the log."""
    at = len(_PNG)
    while (end := at + 12 + int.from_bytes(raw[at : at + 4], "big")) <= len(raw):
        kind = raw[at + 4 : at + 8]
        critical = kind.isupper()  # by the first letter; what is lower case decides no pixel
        checksum = int.from_bytes(raw[end - 4 : end], "big")
        if critical and zlib.crc32(memoryview(raw)[at + 4 : end - 4]) != checksum:
            return f"corrupt PNG (checksum of {kind.decode('ascii', 'replace')} at byte {at})"
        if kind == b"IEND":
            return None
        at = end
    return f"truncated PNG ({len(raw)} bytes, no end-of-image chunk)"


def decode(raw: bytes) -> tuple[NDArray[np.uint8] | None, str | None]:
    """(BGR uint8 (H,W,3), None) or (None, why not). JPEG strictly, PNG, BMP, TIFF and WebP by cv2.

    EXIF orientation is ignored: a camera's pixels are inspected as they lie.
    """
    if raw[:2] == b"\xff\xd8" and (fault := jpeg_fault(raw)):
        return None, fault
    if raw.startswith(_PNG) and (fault := png_fault(raw)):
        return None, fault
    if not raw:
        return None, "empty picture file"
    buffer = np.frombuffer(raw, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        return None, f"cannot be decoded ({error.err or 'cv2 error'})"
    if image is None:
        return None, "cannot be decoded (not a picture, or damaged)"
    return image, None  # type: ignore[return-value]


def decoded(frame: Frame) -> Frame:
    """The frame with its pixels, or with a fault. Cheap when it has either already."""
    if frame.image is not None or frame.fault is not None:
        return frame
    if frame.raw is None:
        return replace(frame, fault="frame without pixels")
    image, fault = decode(frame.raw)
    return replace(frame, image=image, fault=fault and f"{frame.name}: {fault}")
