"""The hot path: uint8 tiles in, scores, maps and tokens out, one engine call."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.bundle import Bundle, EngineEntry
from engines.errors import EngineError
from engines.negotiate import negotiate
from engines.preprocess import SIZE
from engines.session import AnySession, Array, choose, open_session, thread_count

F32 = NDArray[np.float32]
PATCHES = 225
_LIGHT_BYTES = 64 << 20  # weights that may be in memory twice
_CPU_RUNTIMES = ("ort-cpu", "openvino")


@dataclass(frozen=True)
class Memory:
    """Tokens of the normal references: three arrays f32 (G,N,225,D_s), unit length.

    G: one per tile position or camera (1 = shared by all tiles); N: references.
    """

    taps: tuple[F32, ...]


@dataclass(frozen=True)
class Answer:
    """Raw outputs for B tiles; no threshold is applied here.

    score (B,); map (B,240,240) in [0,1]; p (B,15,15,3) in (0,1); distances (B,15,15,3) in [0,2]
    (2 everywhere in zero-shot); tokens 3 x (B,225,D_s) and cls (B,E), unit length;
    f_out (B,15,15,3) = distances/2 * p. All f32.
    """

    score: F32
    map: F32
    p: F32
    distances: F32
    tokens: tuple[F32, F32, F32]
    cls: F32
    f_out: F32


class Detector:
    """One loaded detector engine. Several threads may call `run`; nobody may `bind` meanwhile."""

    def __init__(
        self, bundle: Bundle, entry: EngineEntry, runtime: str = "ort-cpu", threads: int = 0
    ) -> None:
        self.bundle, self.entry = bundle, entry
        self.runtime, self.precision = runtime, entry.precision
        self.engine_sha = bundle.identity(entry)
        self.refused: tuple[str, ...] = ()
        """Engines that could not be used here, each with the reason (`open` with \"auto\")."""
        self.mode = entry.mode or "nearest"
        self._threads = threads
        self._session = open_session(bundle.file(entry.file), runtime, threads, entry.precision)
        self._narrow: AnySession | None = None
        self._bound: dict[str, Array] = {}
        self._groups = 0
        self._running = 0
        self._count = threading.Lock()

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        mode: str = "nearest",
        runtime: str = "auto",
        threads: int = 0,
        precision: str | None = None,
    ) -> "Detector":
        """Load an engine of `mode` (of `precision`, if given).

        "auto": the engine and runtime that are fastest here among what passed, measured once; a
        named runtime: the bundle's default engine on it. Raises EngineError when the bundle has
        none or the runtime cannot run here.
        """
        if runtime == "auto":
            chosen = negotiate(bundle, mode, precision)
            made = cls(bundle, chosen.entry, chosen.runtime, threads)
            made.refused = chosen.refused
            return made
        info = choose(runtime)
        fits = [e for e in bundle.engines("detector", mode) if precision in (None, e.precision)]
        fits = [e for e in fits if e.precision.split("-")[0] in info.precisions]
        if not fits:
            raise EngineError(
                f"bundle {bundle.path} has no detector for mode '{mode}'"
                f"{f' in {precision}' if precision else ''} that {info.name} can run"
            )
        return cls(bundle, fits[0], info.name, threads)

    def bind(self, memory: Memory | None, anchors: F32) -> None:
        """Set memory and text anchors f32 (G,2,E) until the next call; memory None = zero-shot.

        Anchors with G=1 serve every group of the memory. Their direction is the text; their length,
        in (0,1], is how far it is trusted beside the distances (`calibration.trust`). Raises
        EngineError on shapes that do not fit the bundle.
        """
        dims, embed = self.bundle.manifest.tap_dims, self.bundle.manifest.embed_dim
        if anchors.ndim != 3 or anchors.shape[1:] != (2, embed):
            raise EngineError(f"anchors must be (G,2,{embed}), not {anchors.shape}")
        taps = self._taps(memory, dims, len(anchors))
        groups = len(taps[0])
        if len(anchors) not in (1, groups) and groups != 1:
            raise EngineError(f"{len(anchors)} anchor groups for {groups} memory groups")
        self._groups = max(groups, len(anchors))
        for name, tap in zip(("memory_a", "memory_b", "memory_c"), taps, strict=True):
            wide = np.broadcast_to(tap, (self._groups, *tap.shape[1:]))
            self._hold(name, wide.astype(np.float32, copy=False))
        wide = np.broadcast_to(anchors, (self._groups, 2, embed))
        self._hold("anchors", wide.astype(np.float32, copy=False))
        self._hold("few_shot", np.array(memory is not None))

    def _hold(self, name: str, value: Array) -> None:
        self._bound[name] = value
        for session in (self._session, self._narrow):
            if session is not None:
                session.bind(name, value)

    @staticmethod
    def _taps(memory: Memory | None, dims: Sequence[int], groups: int) -> tuple[F32, ...]:
        if memory is None:
            return tuple(np.zeros((groups, 1, PATCHES, d), np.float32) for d in dims)
        shapes = [t.shape for t in memory.taps]
        good = len(shapes) == 3 and all(
            len(s) == 4 and s[:2] == shapes[0][:2] and s[2:] == (PATCHES, d)
            for s, d in zip(shapes, dims, strict=True)
        )
        if not good:
            raise EngineError(f"memory {shapes} does not fit taps (G,N,225,D) with D = {dims}")
        return memory.taps

    def run(self, tiles: NDArray[np.uint8], group: NDArray[np.int64] | None = None) -> Answer:
        """Inspect u8 tiles (B,240,240,3). `group` (B,) picks the memory of each tile.

        Without `group`: all 0 when there is one group, else tile i uses group i. Raises
        EngineError when nothing is bound or shapes do not fit.
        """
        if not self._groups:
            raise EngineError("detector.run before detector.bind: no text anchors are set")
        if tiles.dtype != np.uint8 or tiles.shape[1:] != (SIZE, SIZE, 3) or not len(tiles):
            raise EngineError(f"tiles must be u8 (B,240,240,3), not {tiles.dtype} {tiles.shape}")
        count = len(tiles)
        if group is None:
            group = np.arange(count) if self._groups == count else np.zeros(count, np.int64)
            if self._groups not in (1, count):
                raise EngineError(f"{count} tiles for {self._groups} memory groups: name the group")
        elif group.shape != (count,) or group.min() < 0 or group.max() >= self._groups:
            raise EngineError(f"group {group} does not name one of {self._groups} groups per tile")
        out = self._apart(tiles, group.astype(np.int64))
        tokens = (out["tokens_a"], out["tokens_b"], out["tokens_c"])
        return Answer(
            out["score"], out["map"], out["p"], out["distances"], tokens, out["cls"], out["f_out"]
        )

    def _apart(self, tiles: NDArray[np.uint8], group: NDArray[np.int64]) -> dict[str, Array]:
        """One call; for dynamic INT8 one a tile: its scales are those of a whole batch, and a

        part's score may not depend on which others were inspected with it.
        """
        if len(tiles) == 1 or not self.precision.endswith("dynamic"):
            return self._answer({"tiles": tiles, "group": group})
        each = [
            self._answer({"tiles": tiles[i : i + 1], "group": group[i : i + 1]})
            for i in range(len(tiles))
        ]
        return {name: np.concatenate([one[name] for one in each]) for name in each[0]}

    def _answer(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """A call that is alone gets all threads; calls beside others get their share of them."""
        with self._count:
            alone = self._running == 0
            self._running += 1
        try:
            session = self._session if alone or self._narrow is None else self._narrow
            return session.run(feeds)
        finally:
            with self._count:
                self._running -= 1

    def crowd(self, callers: int) -> str | None:
        """Prepare for `callers` threads that call `run` at once; None, or why nothing was done.

        Two calls of one thread each finish more tiles a second than one call of two threads after
        the other (nano on 2 cores: 66 against 49), so a second session with a share of the threads
        serves calls that overlap. It must answer equal to the last bit, or scores would depend on
        the load. Call it after `bind`. Without it `run` is still right from any thread.
        """
        threads = thread_count(self._threads)
        if callers < 2 or threads < 2 or self.runtime not in _CPU_RUNTIMES:
            return "one caller, one thread or a GPU: nothing to share"
        weights = sum(f.stat().st_size for f in self.bundle.path.glob("*.safetensors"))
        if weights > _LIGHT_BYTES:
            return f"{weights >> 20} MiB of weights would be in memory twice"
        path, share = self.bundle.file(self.entry.file), max(1, threads // callers)
        narrow = open_session(path, self.runtime, share, self.precision, callers)
        for name, value in self._bound.items():
            narrow.bind(name, value)
        if not self._agree(narrow):
            return f"{self.runtime} answers differently with fewer threads"
        self._narrow = narrow
        return None

    def _agree(self, narrow: AnySession) -> bool:
        tiles = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)
        feeds: dict[str, Array] = {"tiles": tiles, "group": np.zeros(1, np.int64)}
        one, other = self._session.run(feeds), narrow.run(feeds)
        return all(np.array_equal(one[name], other[name]) for name in one)


def aggregate(scores: F32) -> float:
    """Score of a part from the scores of its tiles: the maximum."""
    return float(np.max(scores))
