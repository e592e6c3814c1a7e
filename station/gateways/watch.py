"""Every result of a station, in order and without gaps, for a program that runs asyncio."""

import contextlib
import threading
from collections.abc import Callable

from station.client import Client, NoAnswer, Refused
from station.gateways.link_io import StationAddress
from station.schema import Result, Stream
from station.schema_ctl import Reply

RETRY_S = 0.5


class ResultWatch:
    """A thread that subscribes and fills gaps by FETCH; `on_result` is called in that thread.

    It starts with what comes after the station's first HELLO (`begun`). After a loss of the
    station it goes on where it stopped; a new ledger is followed from its first row.
    """

    def __init__(self, address: StationAddress, on_result: Callable[[Result], None]) -> None:
        self._address = address
        self._on_result = on_result
        self.begun = threading.Event()
        self._seen = 0
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
            self._place(client.hello())
            for item in client.subscribe((Stream.RESULT,), {"result": self._seen}, timeout_s=0.5):
                if self._stop.is_set():
                    return
                if isinstance(item, Result) and (item.line, item.station) == (at.line, at.station):
                    self._take(item)
        finally:
            client.close()

    def _place(self, hello: Reply) -> None:
        """Where to go on, by what the station says it holds."""
        if self._epoch is None:
            self._seen = (hello.last_seq or {}).get("result", 0)
        elif hello.epoch != self._epoch:
            self._seen = 0
        self._epoch = hello.epoch
        self.begun.set()

    def _take(self, result: Result) -> None:
        if result.epoch == self._epoch and result.seq <= self._seen:
            return
        self._epoch, self._seen = result.epoch, result.seq
        self._on_result(result)
