"""A region that is one tile is judged from the tile: the same answer, one resize less."""

import cv2
import numpy as np
import pytest

from calibration.plausible import Plausibility, measure
from engines.preprocess import Box, to_tiles


@pytest.mark.parametrize("shape", [(300, 400), (100, 130), (240, 240), (500, 200)])
def test_tile_and_region_get_the_same_answer(shape):
    frame = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    tile = to_tiles(frame, (Box(0, 0, shape[1], shape[0]),))[0]
    seen = measure(frame)
    assert Plausibility.from_looks([seen]).check_tile(tile) is None
    narrow = Plausibility(mean=(seen.mean, seen.mean), sharpness=(seen.sharpness, seen.sharpness))
    assert narrow.check_tile(tile) is None  # exactly equal, not nearly
    dark = Plausibility(mean=(seen.mean + 1, 255))
    assert dark.check_tile(tile) == dark.check(frame)
    assert dark.check(frame) is not None
    swapped = cv2.cvtColor(tile, cv2.COLOR_RGB2BGR)
    assert narrow.check_tile(swapped) is not None  # the tile's channels are RGB
