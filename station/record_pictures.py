"""Small pictures for screens and archives: thumbnails and the anomaly map as a grey PNG."""

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.preprocess import Box

LEVEL_GREY = 128  # the grey at which a map reaches its alarm level


def thumb_jpeg(image: NDArray[np.uint8], side: int = 320, quality: int = 80) -> bytes:
    """A JPEG of BGR or grey (H,W[,3]) whose longest side is at most `side` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def map_png(
    amap: NDArray[np.float32],
    box: Box | None,
    frame_hw: tuple[int, int],
    level: float,
    side: int = 480,
) -> bytes:
    """The anomaly map f32 (h,w) over `box`, drawn over the whole frame's extent.

    8-bit grey, longest side at most `side`, 0 outside the box; `level` becomes 128 and twice the
    level 255. NaN is drawn as 255: what is not a number must not look clean.
    """
    height, width = frame_hw
    scale = min(1.0, side / max(height, width))
    canvas = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.uint8)
    x, y, w, h = (box.x, box.y, box.w, box.h) if box else (0, 0, width, height)
    left, top = round(x * scale), round(y * scale)
    right, bottom = round((x + w) * scale), round((y + h) * scale)
    grey = _grey(amap, level)
    if right > left and bottom > top:
        small = cv2.resize(grey, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
        part = canvas[top:bottom, left:right]
        part[:] = small[: part.shape[0], : part.shape[1]]
    return _encode(".png", canvas, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def png(image: NDArray[np.uint8]) -> bytes:
    """A lossless PNG of BGR or grey."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _grey(amap: NDArray[np.float32], level: float) -> NDArray[np.uint8]:
    scaled = amap.astype(np.float32) * (LEVEL_GREY / max(level, 1e-6))
    return np.nan_to_num(scaled, nan=255.0, posinf=255.0).clip(0, 255).astype(np.uint8)


def _encode(suffix: str, image: NDArray[np.uint8], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    if not done:
        raise ValueError(f"a picture of shape {image.shape} cannot be encoded as {suffix}")
    return data.tobytes()
