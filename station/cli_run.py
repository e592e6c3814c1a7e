"""`station run`: one daemon in this process until it ends or is told to."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from engines.errors import StationError
from station.daemon import Daemon
from station.logs import set_up
from station.options import Options
from station.settings import Settings, load_settings
from station.summary import print_summary

_WORDS_S = 30.0  # how long the end of a folder waits for descriptions still being written


def overrides(**flat: Any) -> dict[str, Any]:
    """`source__spec=...` keyword arguments as the nested dict that settings take; None is unset."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if value is not None:
            section, name = key.split("__")
            nested.setdefault(section, {})[name] = value
    return nested


def run(settings: Settings, config: Path | None, options: Options | None = None) -> int:
    """Run until the source ends, SIGTERM or Ctrl-C. Returns the exit code.

    Raises StationError, and whatever a source's thread died of.
    """
    set_up(settings.log)
    daemon = Daemon(settings, options)
    signals = Signals(daemon, config)
    signals.install()
    daemon.start()
    try:
        _say_where(daemon)
        daemon.wait()
        if not daemon.asked_to_stop:
            daemon.drain_words(_WORDS_S, _tell_words())
        interrupted = daemon.asked_to_stop
    finally:
        outcome = daemon.close()
    lost = any(any(causes.values()) for causes in outcome.losses.values())
    if outcome.totals.parts or lost or not interrupted:
        print_summary(outcome, f"{settings.station.line}/{settings.station.name}")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a service may be started without one
            stream.flush()
    errors = [lane.error for lane in daemon.lanes.values() if lane.error is not None]
    if errors and not interrupted:
        raise errors[0]  # a StationError with its own exit code, anything else with 1
    if not daemon.options.simulated and daemon.hanging():  # a replay has its table still to tell
        os._exit(0)  # a thread sits in an engine call that will never return
    return 0


def _say_where(daemon: Daemon) -> None:
    import structlog

    bus = daemon.bus
    structlog.get_logger("station").info(
        "running",
        pub=bus.pub_address,
        ctl=bus.ctl_address,
        mode=daemon.mode,
        epoch=daemon.ledger.epoch,
        recovered=len(daemon.ledger.recovered),
    )


def _tell_words() -> Any:
    told: set[int] = set()

    def tell(waiting: int) -> None:
        if not told:
            print(f"waiting for {waiting} descriptions (Ctrl-C to leave)", file=sys.stderr)
        told.add(waiting)

    return tell


class Signals:
    """SIGTERM and SIGINT stop gracefully, a second one at once; SIGHUP re-reads what may change."""

    def __init__(self, daemon: Daemon, config: Path | None) -> None:
        self._daemon = daemon
        self._config = config

    def install(self) -> None:
        """Only the main thread of a process may."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def _stop(self, _number: int, _frame: object) -> None:
        """Only plain attributes here: an Event's lock may be held by the very code interrupted."""
        if self._daemon.asked_to_stop:
            os._exit(1)
        self._daemon.asked_to_stop = True
        if not self._daemon.started:
            raise SystemExit(0)  # nothing was accepted yet: leave from wherever start-up is

    def _reload(self, _number: int, _frame: object) -> None:
        threading.Thread(target=self._reread, name="reload", daemon=True).start()

    def _reread(self) -> None:
        """Keys and log level change hot; anything else needs a restart, and says so."""
        try:
            fresh = load_settings(self._config)
        except StationError as error:
            self._daemon.event("reload_refused", "warning", str(error))
            return
        set_up(fresh.log)
        keys = self._daemon.bus.reload_keys() if self._daemon.settings.bus.curve else 0
        self._daemon.event("reloaded", "info", f"{keys} client keys, log level {fresh.log.level}")
