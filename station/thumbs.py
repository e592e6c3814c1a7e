"""The stream `thumb`: small pictures of finished parts for screens, at a limited rate."""

import time
from collections.abc import Callable, Collection

import cv2
import numpy as np

from station.bus_limits import Buckets
from station.parts import PartRecord
from station.record_pictures import thumb_jpeg
from station.schema import Result
from station.sources.decode import decoded

PER_S = 2.0  # a screen needs no more, and a verdict may not wait for decoding
MOST_BYTES = 11_000  # of one JPEG, so that its base64 fits a body
_SIDES = ((320, 80), (320, 50), (200, 50), (96, 40))  # pixels, quality: the first that fits
Publish = Callable[[bytes, int, int, str | None], None]


class Thumbs:
    """PartObserver: publishes the picture of a part, at most `PER_S` a second and camera.

    `cameras` are the names that part ids may begin with; any other beginning is the part's own.
    """

    def __init__(
        self,
        publish: Publish,
        cameras: Collection[str] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publish, self._cameras = publish, cameras
        self._limits = Buckets(PER_S, 1.0, now)

    def part(self, record: PartRecord) -> None:
        """Publish a part's picture, unless it has none or the last one was just now."""
        if record.frame is None or not self._limits.take(self._camera(record.result)):
            return
        image = decoded(record.frame).image
        if image is None:
            return
        for side, quality in _SIDES:
            jpeg = thumb_jpeg(image, side, quality)
            if len(jpeg) <= MOST_BYTES:
                high, wide = _size(jpeg)
                self._publish(jpeg, wide, high, record.result.trigger_id)
                return

    def close(self) -> None:
        """Nothing is held open."""

    def _camera(self, result: Result) -> str:
        """With several cameras a part id begins with the camera's name and a slash."""
        name = result.part_id.partition("/")[0]
        return name if name in self._cameras else ""


def _size(jpeg: bytes) -> tuple[int, int]:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None, "it was encoded here"
    return int(image.shape[0]), int(image.shape[1])
