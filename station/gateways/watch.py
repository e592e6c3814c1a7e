"""Every result of a station, in order and without gaps, for a program that runs asyncio."""

import contextlib
import threading
from collections.abc import Callable

from station.client import Client, NoAnswer, Refused
from station.gateways.link_io import StationAddress
from station.schema import Result, Stream

RETRY_S = 0.5


class ResultWatch:
    """A thread that subscribes and fills gaps by FETCH; `on_result` is called in that thread.

    It starts with what is new. After a loss of the station it goes on where it stopped.
    """

    def __init__(self, address: StationAddress, on_result: Callable[[Result], None]) -> None:
        self._address = address
        self._on_result = on_result
        self._since: dict[str, int] | None = None
        self._epoch: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="result-watch", daemon=True)

    def start(self) -> None:
        """Subscribe in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread (within the subscription's timeout of 0.5 s)."""
        self._stop.set()
        self._thread.join(3.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(NoAnswer, Refused):  # gone or restarting: try again
                self._follow()
            self._stop.wait(RETRY_S)

    def _follow(self) -> None:
        at = self._address
        client = Client(at.ctl, at.pub, keys=at.keys, name=f"{at.client}-watch")
        try:
            for item in client.subscribe((Stream.RESULT,), self._since, timeout_s=0.5):
                if self._stop.is_set():
                    return
                if isinstance(item, Result) and (item.line, item.station) == (at.line, at.station):
                    self._take(item)
        finally:
            client.close()

    def _take(self, result: Result) -> None:
        seen = (self._since or {}).get("result", 0)
        if result.epoch == self._epoch and result.seq <= seen:
            return
        self._epoch = result.epoch
        self._since = {"result": result.seq}
        self._on_result(result)
