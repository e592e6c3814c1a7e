"""A detector double: its score of a part is the brightness of its tiles; no engine, no bundle."""

from types import SimpleNamespace

import numpy as np

from engines.detector import Answer

DIMS = (4, 4, 3)


class BrightnessDetector:
    """Score = mean grey / 255 (plus `shift`); tokens are unit vectors that depend on the tile.

    cue: what P says of every patch.
    """

    def __init__(self, sha="engine-1", shift=0.0, mode="bank", cue=0.0):
        self.engine_sha, self.precision = sha, "fp32"
        self.bundle = SimpleNamespace(sha="bundle-1")
        self.shift, self.mode, self.cue = shift, mode, cue
        self.bound = self.anchors = None

    def bind(self, memory, anchors):
        assert anchors.ndim == 3 and anchors.shape[1:] == (2, 3)
        self.bound, self.anchors = memory, anchors

    def run(self, tiles, group=None):
        assert tiles.dtype == np.uint8 and tiles.shape[1:] == (240, 240, 3)
        if self.bound is not None:
            assert group.max() < self.bound.taps[0].shape[0]
        mean = tiles.reshape(len(tiles), -1).mean(1).astype(np.float32) / 255
        tokens = tuple(np.repeat(np.eye(d, dtype=np.float32)[:1], 225, 0) for d in DIMS)
        spread = tuple(np.stack([t * m for m in mean]) for t in tokens)
        score = np.minimum(mean + self.shift, 1.0).astype(np.float32)
        grid = np.zeros((len(tiles), 15, 15, 3), np.float32)
        maps = np.zeros((len(tiles), 240, 240), np.float32)
        p = grid + np.float32(self.cue)
        return Answer(score, maps, p, grid, spread, np.zeros((len(tiles), 3)), grid)


def anchors(noun, phrases):
    return np.eye(3, dtype=np.float32)[:2]


def frames(count, start=0, size=(60, 80)):
    """Distinct dull frames, each a little different, named by number."""
    for index in range(start, start + count):
        rng = np.random.default_rng(index)
        yield f"part{index:03d}", rng.integers(40, 120 + index % 7, (*size, 3), np.uint8)
