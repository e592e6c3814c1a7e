"""Which observers of finished parts a station has: pictures, archive, recorder, numbers, drift."""

from typing import TYPE_CHECKING

from station.inspection import Product
from station.parts import PartObserver
from station.pictures import Pictures
from station.settings import Settings

if TYPE_CHECKING:
    from station.daemon import Daemon


def open_observers(
    settings: Settings, product: Product, daemon: "Daemon"
) -> tuple[dict[str, PartObserver], Pictures]:
    """Observers by name, and the pictures that answer GET. InUseError: the metrics port."""
    pictures = Pictures()
    made: dict[str, PartObserver] = {"pictures": pictures}
    if settings.archive.enabled:
        from station.archive import Archive

        archive = Archive(settings.archive, daemon.event)
        pictures.fallback = archive.image
        made["archive"] = archive
    if settings.record.enabled:
        from station.record import Recorder

        made["record"] = Recorder(
            settings.record, _identity(settings, product, daemon), daemon.event
        )
    if settings.metrics.port:
        from station.metrics import Metrics
        from station.metrics_http import MetricsServer

        metrics = Metrics(daemon.last_status)
        MetricsServer(settings.metrics, metrics, daemon.last_status).start()
        made["metrics"] = metrics
    if settings.drift.enabled and product.loaded is not None and product.threshold is not None:
        from station.drift import DriftMonitor

        scores, drift = product.loaded.calibration.scores, settings.drift
        made["drift"] = DriftMonitor(
            scores, product.threshold, daemon.event, drift.window, drift.p_alarm
        )
    return made, pictures


def _identity(settings: Settings, product: Product, daemon: "Daemon") -> dict[str, str]:
    """What a recording says about where it comes from."""
    return {
        "line": settings.station.line,
        "station": settings.station.name,
        "epoch": daemon.ledger.epoch,
        "config_sha": daemon.config_sha,
        "bundle_sha": product.bundle_sha,
        "recipe_sha": product.sha,
        "engine": f"{product.engine.engine_sha}/{product.engine.precision}",
    }
