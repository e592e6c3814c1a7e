"""Numbers for Prometheus: one observer that counts parts, and gauges read from the status."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from station.parts import PartRecord
from station.schema import Reason, StatusFacts, Verdict

# From half a frame time of a fast line to the longest useful deadline.
LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
# The score in units of its threshold: 1 is the edge between OK and NG.
SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_CAMERA = {
    "repeats": "Frames that carried the very picture of the one before.",
    "damaged": "Frames whose bytes were not one whole picture.",
    "restarts": "Times the camera's process was started again.",
}
StatusSource = Callable[[], StatusFacts]


class Metrics:
    """PartObserver. `status` returns the last status without side effects; None: no gauges.

    `dropped` gives what each observer could not take so far, `drift` the chance of its monitor,
    `losses` of each camera how many frames became no part, and its repeats and restarts, by cause.
    """

    def __init__(
        self,
        status: StatusSource | None = None,
        dropped: Callable[[], Mapping[str, int]] = dict,
        drift: Callable[[], float] = lambda: 1.0,
        losses: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
    ) -> None:
        self.registry = CollectorRegistry()
        self._parts = Counter(
            "station_parts",
            "Judged parts by verdict and reason.",
            ["verdict", "reason"],
            registry=self.registry,
        )
        for verdict, reason in ((Verdict.OK, Reason.SCORE), (Verdict.NG, Reason.SCORE)):
            self._parts.labels(verdict.value, reason.value)  # a rate() needs a zero to begin with
        self._late = Counter(
            "station_late", "Verdicts committed after their deadline.", registry=self.registry
        )
        self._latency = Histogram(
            "station_verdict_seconds",
            "From trigger to committed verdict.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "station_stage_seconds",
            "One stage of a verdict.",
            ["stage"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._score = Histogram(
            "station_score_ratio",
            "Score divided by its threshold; above 1 is NG.",
            buckets=SCORE_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Dropped(dropped))
        self.registry.register(_Losses(losses))
        Gauge(
            "station_drift_p",
            "Chance that good parts score as now if nothing had changed (1 = no drift).",
            registry=self.registry,
        ).set_function(drift)
        if status is not None:
            self.registry.register(_StatusGauges(status))

    def part(self, record: PartRecord) -> None:
        """Count one part."""
        result = record.result
        self._parts.labels(result.verdict.value, result.reason.value).inc()
        self._late.inc(int(result.late))
        self._latency.observe(max(0, result.t_done_us - result.t_trigger_us) / 1e6)
        for stage, micros in result.timings_us.model_dump().items():
            self._stages.labels(stage).observe(micros / 1e6)
        if result.score is not None and result.threshold:
            self._score.observe(result.score / result.threshold)

    def text(self) -> bytes:
        """The page for Prometheus."""
        return generate_latest(self.registry)

    def close(self) -> None:
        """Nothing is held open."""


class _Dropped(Collector):
    """What observers could not take, counted where it happens."""

    def __init__(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        self._dropped = dropped

    def collect(self) -> list[CounterMetricFamily]:
        """One counter with a line per observer."""
        text = "What recorder, archive or describer could not take."
        found = CounterMetricFamily("station_observer_dropped", text, labels=["observer"])
        for name, count in self._dropped().items():
            found.add_metric([name], count)
        return [found]


class _Losses(Collector):
    """What a camera and its lane lost, counted where it happens."""

    def __init__(self, losses: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        self._losses = losses

    def collect(self) -> list[CounterMetricFamily]:
        """One line per camera and cause; the only camera's name is "" as in its part ids."""
        text = "Frames that became no part (stale, superseded, refused, overrun), by cause."
        frames = CounterMetricFamily("station_frames_dropped", text, labels=["camera", "cause"])
        found = {"dropped": frames}
        for name, what in _CAMERA.items():
            found[name] = CounterMetricFamily(f"station_camera_{name}", what, labels=["camera"])
        for camera, causes in self._losses().items():
            for cause, count in causes.items():
                if cause in _CAMERA:
                    found[cause].add_metric([camera], count)
                else:
                    frames.add_metric([camera, cause], count)
        return list(found.values())


class _StatusGauges(Collector):
    """Gauges taken from the status at the moment of the scrape."""

    def __init__(self, status: StatusSource) -> None:
        self._status = status

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing in advance: the registry must not ask for a status while it is built."""
        return []

    def collect(self) -> list[GaugeMetricFamily]:
        """One gauge per number of the status, and one per active fault."""
        status = self._status()
        gauges = {
            "station_ready": ("1 when triggers are accepted.", float(status.ready)),
            "station_busy": ("1 while a part is inspected.", float(status.busy)),
            "station_heartbeat": ("Moves while every worker ticks.", float(status.hb)),
            "station_open_triggers": ("Parts without a verdict.", float(status.open_triggers)),
            "station_queue_depth": ("Parts waiting for the engine.", float(status.queue_depth)),
            "station_fps": ("Frames a second.", status.fps),
            "station_disk_free_bytes": ("Free space for ledger and records.", status.disk_free),
        }
        found = [GaugeMetricFamily(n, text, value) for n, (text, value) in gauges.items()]
        faults = GaugeMetricFamily("station_fault", "Active faults.", labels=["fault"])
        for fault in status.faults:
            faults.add_metric([fault], 1.0)
        return [*found, faults]
