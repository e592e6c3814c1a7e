"""Which observers of finished parts a station has: pictures, archive, recorder, numbers, drift."""

from typing import TYPE_CHECKING

from station.inspection import Product
from station.parts import PartObserver
from station.pictures import Pictures
from station.settings import Settings
from station.thumbs import Thumbs

if TYPE_CHECKING:
    from station.daemon import Daemon
    from station.drift import RecipeDrift


def open_observers(
    settings: Settings, product: Product, daemon: "Daemon"
) -> tuple[dict[str, PartObserver], Pictures]:
    """Observers by name, and the pictures that answer GET. InUseError: the metrics port."""
    pictures = Pictures()
    thumbs = Thumbs(daemon.bus.publish_thumb, frozenset(settings.cameras))
    made: dict[str, PartObserver] = {"pictures": pictures, "thumbs": thumbs}
    if settings.archive.enabled:
        from station.archive import Archive

        archive = Archive(settings.archive, daemon.event)
        pictures.fallback = archive.image
        made["archive"] = archive
    if settings.record.enabled:
        from station.record import Recorder

        made["record"] = Recorder(
            settings.record, lambda: _identity(settings, daemon), daemon.event
        )
    drift = _drift(settings, daemon) if settings.drift.enabled else None
    if drift is not None:
        made["drift"] = drift
    if settings.metrics.port:
        from station.metrics import Metrics
        from station.metrics_http import MetricsServer

        metrics = Metrics(
            daemon.last_status,
            dropped=lambda: _dropped(daemon),
            drift=lambda: drift.p if drift is not None else 1.0,
            losses=lambda: {name: lane.losses() for name, lane in list(daemon.lanes.items())},
        )
        MetricsServer(settings.metrics, metrics, daemon.last_status).start()
        made["metrics"] = metrics
    return made, pictures


def _dropped(daemon: "Daemon") -> dict[str, int]:
    """How many parts each observer, and the describer, could not take so far."""
    found = {observer.name: observer.dropped for observer in daemon.after.observers}
    if daemon.after.describe is not None:
        found["describer"] = daemon.after.describe.stats().dropped + daemon.after.not_described
    return found


def _drift(settings: Settings, daemon: "Daemon") -> "RecipeDrift":
    """Good parts against those of the recipe they were judged with, as it is in use now."""
    from station.drift import DriftMonitor, RecipeDrift

    def monitor(recipe_sha: str) -> DriftMonitor | None:
        for product in list(daemon.products.values()):
            if product.loaded and product.threshold is not None and product.sha == recipe_sha:
                scores = product.loaded.calibration.scores
                window, p_alarm = settings.drift.window, settings.drift.p_alarm
                return DriftMonitor(scores, product.threshold, daemon.event, window, p_alarm)
        return None

    return RecipeDrift(monitor)


def _identity(settings: Settings, daemon: "Daemon") -> dict[str, str]:
    """What a recording says about where it comes from, as it is when the file begins.

    Several cameras may have several products; which part had which stands in the results.
    """
    products = {product.sha: product for product in list(daemon.products.values())}
    return {
        "line": settings.station.line,
        "station": settings.station.name,
        "epoch": daemon.ledger.epoch,
        "config_sha": daemon.config_sha,
        "bundle_sha": ",".join(sorted({p.bundle_sha for p in products.values()})),
        "recipe_sha": ",".join(products),
        "engine": ",".join(
            f"{p.engine.engine_sha}/{p.engine.precision}" for p in products.values()
        ),
    }
