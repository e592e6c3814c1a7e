"""Before READY: the bundle, its engine, its self-test, and the recipe that will inspect."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from calibration.recipe import LoadedRecipe
from engines.bundle import Bundle, EngineEntry, load_bundle
from engines.errors import EngineError, RecipeError
from station.inspection import Product
from station.settings import Settings

if TYPE_CHECKING:
    from engines.detector import Detector

log = structlog.get_logger("boot")
DEFAULT_MODE = "position"


class EngineRoom:
    """Opens detectors of one bundle; every product gets one of its own, self-tested."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.bundle: Bundle = load_bundle(settings.engine.bundle)
        self._tested: dict[str, tuple[EngineEntry, str]] = {}  # mode -> engine, runtime
        self.callers = 1  # threads that will call one product's engine at once

    def detector(self, mode: str) -> "Detector":
        """A detector of this mode; EngineError when it cannot run or fails its self-test."""
        from engines.detector import Detector
        from engines.selftest import open_verified

        engine = self._settings.engine
        if mode in self._tested:  # the very one that passed, not what "auto" would say again
            return Detector(self.bundle, *self._tested[mode], engine.threads)
        log.info("engine", mode=mode, text="opening; measured once per machine on its first start")
        detector, report = open_verified(self.bundle, mode, engine.runtime, engine.threads)
        self._tested[mode] = (detector.entry, detector.runtime)
        log.info("self_test", **asdict(report))
        return detector

    def product(self, name: str | None) -> Product:
        """The product of a recipe, or zero-shot for None. RecipeError (exit 8) when unknown."""
        return self._zero_shot() if name is None else self._from_recipe(name)

    def _crowd(self, detector: "Detector") -> None:
        """Let overlapping calls have their own session where frames may outrun the engine."""
        if self.callers > 1:
            why_not = detector.crowd(self.callers)
            log.info("engine_calls", callers=self.callers, shared=why_not is None, why=why_not)

    def _zero_shot(self) -> Product:
        from engines.text import TextEncoder

        detector = self.detector(self._settings.engine.mode or DEFAULT_MODE)
        anchors = TextEncoder.open(self.bundle).anchors("object")
        detector.bind(None, anchors[None])
        self._crowd(detector)
        return Product(detector, None, self.bundle.sha, anchors)

    def _from_recipe(self, name: str) -> Product:
        from calibration.enroll import open_recipe

        wanted = self._settings.engine.mode
        loaded, detector, rebuilt = open_recipe(self._settings.recipe.root, name, self.detector)
        if wanted and wanted != loaded.recipe.mode:
            raise RecipeError(
                f"recipe {name!r} was enrolled in mode {loaded.recipe.mode!r}, engine.mode says "
                f"{wanted!r}: remove engine.mode, or enrol again with --mode {wanted}"
            )
        if rebuilt:
            log.warning("recipe_rebuilt", recipe=name, why=rebuilt)
        self._crowd(detector)  # type: ignore[arg-type]
        shape = _enrolled_shape(loaded)
        return Product(detector, loaded, self.bundle.sha, loaded.anchors, shape)  # type: ignore[arg-type]

    def prefix(self) -> str | None:
        """Path of the describer's prefix graph, None where the bundle has none."""
        try:
            path: Path = self.bundle.file("prefix.onnx")
        except (EngineError, KeyError):
            return None
        return str(path) if path.exists() else None


def _enrolled_shape(loaded: LoadedRecipe) -> tuple[int, int] | None:
    """(H, W) of the frames it was enrolled from; None for an older recipe with a region.

    A camera that delivers another size has another lens, crop or mode: nothing it shows is judged.
    """
    import cv2

    if not loaded.calibration.shots:
        return None
    first = loaded.calibration.shots[0]
    if first.frame is not None or loaded.recipe.region is not None:
        return first.frame
    path = loaded.path / "references" / first.file
    image = cv2.imread(str(path))
    return None if image is None else (image.shape[0], image.shape[1])
