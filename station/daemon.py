"""The station: lanes, detector, ledger, bus and what follows a verdict, put together and run.

Start-up order is the reverse of trust: ledger (recovers what a crash left), bus (tells that
nothing is ready yet), engine and recipe, then the lanes. READY is the absence of faults.
"""

import shutil
import threading
import time
from collections.abc import Callable

import structlog

from station import __version__, wiring
from station.after import Aftermath, ObserverThread
from station.boot import EngineRoom
from station.bus import Bus
from station.control import Control
from station.decided import Decided, Names
from station.describe import DescribeService, DescribeStats
from station.detect import DetectorThreads
from station.flow import Flow
from station.golden import GoldenWatch
from station.inspection import Product
from station.lane import Lane, LaneHooks
from station.ledger import Ledger
from station.observers import open_observers
from station.openings import Openings
from station.options import Options, Outcome
from station.schema import Reason, Severity, StatusFacts
from station.sdnotify import notify
from station.settings import Settings, SourceSettings
from station.sources.base import Source, open_source
from station.supervise import Heartbeat, Readiness, Ticks
from station.turns import ReadyQueue
from station.watch import Watch

log = structlog.get_logger("station")
_FEED_AHEAD = 2  # parts besides those in the engine where every frame is one: queue and commit
_POLL_S = 0.05
_IDLE_S = 0.3  # within which a worker that hangs in nothing has ended: it looks every 100 ms
_STOP_S = 1.2  # of the 2 s that SIGTERM may take


class Daemon:
    """One station. `start`, then `wait` until it ends or `stop` is asked for, then `close`."""

    def __init__(self, settings: Settings, options: Options | None = None) -> None:
        self.settings = settings
        self.options = options or Options()
        self.config_sha = settings.sha()
        self.ticks = Ticks()
        self.asked_to_stop = False  # plain: set by signal handlers, looked at by `wait`
        self.started = False
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.lanes: dict[str, Lane] = {}
        self.products: dict[str, Product] = {}
        self.mode = "starting"
        self._faults: list[str] = []
        self._describe: DescribeService | None = None
        self._images: Callable[[str], tuple[str, bytes] | None] = lambda _ref: None
        self._last_status: StatusFacts | None = None
        self._bus: Bus | None = None
        self._golden: GoldenWatch | None = None
        self._outcome: Outcome | None = None
        self.openings = Openings(self)
        self.readiness = Readiness(self._ready_changed)

    # -- start -------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; raises StationError with the exit code of what is missing."""
        settings = self.settings
        sources = self._open_sources()
        path = settings.ledger.path
        self.ledger = Ledger(path, line=settings.station.line, station=settings.station.name)
        try:
            self._assemble(sources)
        except BaseException:
            self._close_early(sources)
            raise

    def _open_sources(self) -> dict[str, Source]:
        """Sources first: a missing camera or folder is the commonest mistake, and cheap to see."""
        make = self.options.source or (lambda s: open_source(s.spec, s))
        opened: dict[str, Source] = {}
        try:
            for name, config in self.settings.sources().items():
                opened[name] = make(wiring.with_recipe_controls(config, self.settings.recipe))
                opened[name].open()
        except BaseException:
            for source in opened.values():
                source.close()
            raise
        return opened

    def _assemble(self, sources: dict[str, Source]) -> None:
        self.after = Aftermath(None)
        self.after.listeners += self.options.listeners
        self.flow = Flow(self.ledger, self.after.put, self.settings.trigger.in_flight)
        self.ledger.add_listener(self.flow.on_row)
        self.ledger.add_listener(self.after.message)
        self.control = Control(self)
        bus = Bus(wiring.bus_config(self.settings), self.ledger, self.control)
        bus.start()
        self._bus = bus
        room = (self.options.engine or EngineRoom)(self.settings)
        self.room = room
        room.callers = wiring.engine_callers(self.settings)
        self.decided = Decided(self.ledger)
        names = self.decided.recipes(self.configured_recipes())
        with self.decided.trusted(names, self.configured_recipes()):
            made = {recipe: wiring.product_of(self, recipe) for recipe in set(names.values())}
        self.products = {lane: made[recipe] for lane, recipe in names.items()}
        self._start_words(room.prefix())
        if self.options.observers:
            self._start_observers()
        self._start_workers(sources)

    def configured_recipes(self) -> Names:
        """Lane -> recipe as station.toml says it."""
        return {n: c.recipe or self.settings.recipe.name for n, c in self._source_settings()}

    def _source_settings(self) -> list[tuple[str, SourceSettings]]:
        return list(self.settings.sources().items())

    def _start_words(self, prefix: str | None) -> None:
        self._describe = wiring.describe_service(self.settings, prefix, self.ledger, self.flow)
        self.after.describe = self._describe
        if self._describe is not None:
            self._describe.start()

    def _start_observers(self) -> None:
        product = next(iter(self.products.values()))
        made, pictures = open_observers(self.settings, product, self)
        self._images = pictures.get
        depth = self.settings.record.queue
        for name, observer in made.items():
            self.after.observers.append(ObserverThread(name, observer, depth, self.event))

    def _start_workers(self, sources: dict[str, Source]) -> None:
        self.ready_queue = ready = ReadyQueue(max(self.options.ready_queue, len(sources)))
        count = wiring.engine_workers(self.settings)
        batch = -(-len(sources) // count)
        self.detector = DetectorThreads(self.flow, ready, self.ticks, self._desc_room, batch, count)
        if self.settings.golden.every_s:
            self._golden = self._golden_watch()
            self.detector.between = self._golden.look
        self.watch = Watch(self)
        self.watch.probe_all()
        hooks = LaneHooks(
            accepting=lambda: not self.stopping.is_set() and self.mode != "stopped",
            opening=self.openings.own,
            ready=ready,
            tick=self.ticks.tick,
            loose_frame=self.after.frame,
            ended=self._lane_ended,
        )
        for name, source in sources.items():
            stale_ns = self.settings.trigger.staleness_ms * 1_000_000
            self.lanes[name] = Lane(name, source, self.flow, hooks, staleness_ns=stale_ns)
            if source.live:
                source.on_event = self._camera_event  # type: ignore[attr-defined]
        lanes = (lane.worker for lane in self.lanes.values())
        self.workers = (*lanes, *self.detector.workers, "ledger", "deadline", "bus")
        self.heart = Heartbeat(self.ticks, self.workers)
        wiring.tune_cameras(self, self.products)
        self.set_mode(self.decided.mode(wiring.first_mode(self)))
        self._tell_decided()
        self.detector.start()
        for lane in self.lanes.values():
            lane.start()
        if self.settings.trigger.by == "interval":
            threading.Thread(target=self._interval, name="interval", daemon=True).start()
        self.watch.start()
        self.readiness.set("start", None)
        self.started = True
        wiring.hint(self)

    def _distinct_products(self) -> list[Product]:
        return list({id(p): p for p in self.products.values()}.values())

    def _golden_watch(self) -> GoldenWatch:
        return GoldenWatch(
            self.settings.golden,
            self._distinct_products,
            lambda fault: self.readiness.set("golden", fault),
            self.event,
        )

    # -- modes -------------------------------------------------------------------------------

    def _tell_decided(self) -> None:
        """What is not as station.toml says it, because it was decided over the bus."""
        names = {lane: product.name or None for lane, product in self.products.items()}
        if names != dict(self.configured_recipes()):
            self.event("recipe", "info", f"recipes as decided before the restart: {names}")
        if self.mode != wiring.first_mode(self):
            self.event("mode", "info", f"mode {self.mode} as decided before the restart")

    def set_mode(self, mode: str) -> None:
        """triggered, free_run, every_frame (files: nothing is dropped) or stopped."""
        self.mode = mode
        for lane in self.lanes.values():
            lane.by = "trigger" if mode == "triggered" else "every_frame"
            lane.free_run = lane.source.live and mode == "free_run"
        ahead = _FEED_AHEAD + len(self.detector.workers)
        each = self.settings.trigger.in_flight if mode == "triggered" else ahead
        self.flow.most = each * max(1, len(self.lanes))

    def _interval(self) -> None:
        """A clock as trigger: a part still open when the next is due is a miss with a verdict."""
        period = self.settings.trigger.interval_ms / 1000
        due = time.monotonic()
        while not self.stopping.is_set() and not self.ended.is_set():
            due += period
            if self.readiness.evaluate()[0] and self.mode == "triggered":
                for lane in self.lanes.values():
                    self.control.trigger_now(lane)
            self.stopping.wait(max(0.0, due - time.monotonic()))

    @property
    def bus(self) -> Bus:
        """The bus of a started daemon."""
        assert self._bus is not None, "the daemon was not started"
        return self._bus

    # -- looking -----------------------------------------------------------------------------

    def last_status(self) -> StatusFacts:
        """The status that was published last (for /metrics: asking must not move `hb`)."""
        return self._last_status or self.status()

    def reset(self) -> tuple[bool, tuple[str, ...]]:
        """A person has looked: look at every reason against READY again, now. (ready, faults)."""
        self.event("reset", "info", "faults were reset by command")
        self.watch.look_at_disk()
        if self._golden is not None:
            self._golden.at_once()
        return self.readiness.evaluate()

    def take_ticks(self) -> None:
        """Signs of life that workers keep themselves."""
        self.ticks.set("ledger", self.ledger.tick_ns)
        if hasattr(self, "flow"):
            self.ticks.set("deadline", self.flow.tick_ns)
        if self._bus is not None:
            self.ticks.set("bus", self._bus.tick_ns)

    def status(self) -> StatusFacts:
        """What the bus publishes five times a second."""
        facts = self._last_status = self._status()
        return facts

    def _status(self) -> StatusFacts:
        ready, faults = self.readiness.evaluate()
        self.take_ticks()
        heart = getattr(self, "heart", None)
        recipe = ",".join(sorted({p.name for p in self.products.values()} - {""}))
        words = self._describe.stats() if self._describe else None
        flow = getattr(self, "flow", None)
        opened = flow.open_count if flow else 0
        return StatusFacts(
            ready=ready,
            busy=bool(flow and opened >= flow.most),
            mode=self.mode,
            faults=tuple(f[:500] for f in faults[:32]),
            hb=heart.beat(time.monotonic_ns()) if heart else 0,
            open_triggers=opened,
            queue_depth=self.ready_queue.qsize() if hasattr(self, "ready_queue") else 0,
            fps=round(self.after.fps(), 2),
            disk_free=shutil.disk_usage(self.settings.ledger.path.parent).free,
            recipe=recipe[:128],
            describer=_describer_says(words),
            version=__version__,
            simulated=self.options.simulated,
        )

    def image(self, ref: str) -> tuple[str, bytes] | None:
        """Picture of a part, for GET."""
        return self._images(ref)

    def event(self, kind: str, severity: str, text: str) -> None:
        """An event from any thread (observers, cameras)."""
        self.flow.event(kind, text, Severity(severity))

    def _desc_room(self) -> bool:
        return self._describe is not None and self._describe.room > 0

    def _camera_event(self, kind: str, text: str) -> None:
        severity = "info" if kind == "camera_opened" else "error"
        self.event(kind, severity, text)
        self.readiness.evaluate()

    def _ready_changed(self, ready: bool, faults: tuple[str, ...]) -> None:
        log.info("ready" if ready else "not_ready", faults=list(faults))
        if self._bus is not None:
            self._bus.publish_status()
        if ready:
            notify("READY=1\nSTATUS=ready")
        else:
            notify(f"STATUS=not ready: {'; '.join(faults)[:200]}")

    def _lane_ended(self, _lane: str, fault: str | None) -> None:
        if fault:
            self._faults.append(fault)
        if all(lane.finished for lane in self.lanes.values()):
            self.ended.set()

    # -- end ---------------------------------------------------------------------------------

    def wait(self) -> None:
        """Block until stop is asked for or every source has ended and been judged."""
        while not self.asked_to_stop and not self.stopping.is_set():
            if self.ended.is_set() and self.flow.wait_empty(_POLL_S):
                self.flow.settle(1.0)
                return
            time.sleep(_POLL_S)

    def drain_words(self, most_s: float, tell: Callable[[int], None] = lambda _n: None) -> None:
        """Wait for the descriptions that are still to come, at most so long."""
        if self._describe is None:
            return
        end = time.monotonic() + most_s
        while time.monotonic() < end and not self.asked_to_stop:
            stats = self._describe.stats()
            waiting = stats.submitted - stats.described - stats.dropped
            if waiting <= 0:
                return
            tell(waiting)
            time.sleep(_POLL_S)

    def close(self) -> Outcome:
        """Finish or fail what is open, flush, release; within 2 s whatever hangs."""
        if self._outcome is None:
            self._outcome = self._close()
        return self._outcome

    def _close(self) -> Outcome:
        self.stopping.set()
        self.readiness.evaluate()
        notify("STOPPING=1")
        for lane in self.lanes.values():
            lane.stop()
        self.flow.wait_empty(_STOP_S)
        self.flow.fail_open(Reason.RESTART, "the station was stopped")
        self.flow.wait_empty(0.3)
        self.flow.settle(0.2)
        self.detector.stop()
        if self._describe is not None:
            self._describe.stop(0.2)
        # After the stop: what still waited is counted among the dropped.
        words = self._describe.stats() if self._describe else None
        for lane in self.lanes.values():
            lane.join(0.2)
            lane.source.close()
        self.after.close(0.5)
        self.flow.close()
        if self._bus is not None:
            self._bus.stop(0.5)
        self.ledger.close(0.5)
        return Outcome(
            self.after.totals(),
            self._faults[0] if self._faults else None,
            words.described if words else 0,
            (words.dropped if words else 0) + self.after.not_described,
            {name: lane.losses() for name, lane in self.lanes.items()},
        )

    def hanging(self) -> bool:
        """Whether a worker could not be ended (the process must then leave by force)."""
        return not self.detector.join(_IDLE_S)

    def _close_early(self, sources: dict[str, Source]) -> None:
        for source in sources.values():
            source.close()
        if self._describe is not None:
            self._describe.stop(0.2)
        if self._bus is not None:
            self._bus.stop(0.2)
        if hasattr(self, "flow"):
            self.flow.close()
        if hasattr(self, "after"):
            self.after.close(0.2)
        self.ledger.close()


def _describer_says(words: DescribeStats | None) -> str:
    if words is None:
        return "off"
    return (f"{words.source}: {words.reason}" if words.reason else words.source)[:200]
