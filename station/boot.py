"""Before READY: the bundle, its engine, its self-test, and the recipe that will inspect."""

from collections.abc import Callable
from pathlib import Path

import structlog

from engines.bundle import Bundle, load_bundle
from engines.errors import EngineError, RecipeError
from station.inspection import Product
from station.settings import Settings

log = structlog.get_logger("boot")
DEFAULT_MODE = "position"


class EngineRoom:
    """Opens detectors of one bundle; every product gets one of its own, self-tested."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.bundle: Bundle = load_bundle(settings.engine.bundle)
        self._tested: set[str] = set()

    def detector(self, mode: str) -> "object":
        """A detector of this mode; EngineError when it cannot run or fails its self-test."""
        from engines.detector import Detector
        from engines.selftest import self_test

        engine = self._settings.engine
        detector = Detector.open(
            self.bundle,
            mode,  # type: ignore[arg-type]
            runtime=engine.runtime,
            threads=engine.threads,
        )
        if mode not in self._tested:
            report = self_test(detector)
            self._tested.add(mode)
            log.info("self_test", mode=mode, runtime=detector.runtime, report=str(report))
        return detector

    def product(self, name: str | None) -> Product:
        """The product of a recipe, or zero-shot for None. RecipeError (exit 8) when unknown."""
        return self._zero_shot() if name is None else self._from_recipe(name)

    def _zero_shot(self) -> Product:
        from engines.text import TextEncoder

        detector = self.detector(self._settings.engine.mode or DEFAULT_MODE)
        anchors = TextEncoder.open(self.bundle).anchors("object")
        detector.bind(None, anchors[None])  # type: ignore[attr-defined]
        return Product(detector, None, self.bundle.sha, anchors)  # type: ignore[arg-type]

    def _from_recipe(self, name: str) -> Product:
        from calibration.enroll import open_recipe

        wanted = self._settings.engine.mode
        factory: Callable[[str], object] = self.detector
        loaded, detector, rebuilt = open_recipe(self._settings.recipe.root, name, factory)  # type: ignore[arg-type]
        if wanted and wanted != loaded.recipe.mode:
            raise RecipeError(
                f"recipe {name!r} was enrolled in mode {loaded.recipe.mode!r}, engine.mode says "
                f"{wanted!r}: remove engine.mode, or enrol again with --mode {wanted}"
            )
        if rebuilt:
            log.warning("recipe_rebuilt", recipe=name, why=rebuilt)
        return Product(detector, loaded, self.bundle.sha, loaded.anchors)  # type: ignore[arg-type]

    def prefix(self) -> str | None:
        """Path of the describer's prefix graph, None where the bundle has none."""
        try:
            path: Path = self.bundle.file("prefix.onnx")
        except (EngineError, KeyError):
            return None
        return str(path) if path.exists() else None
