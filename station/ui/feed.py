"""The page's subscription: one thread, one client, from the bus to the board and the pages."""

import threading
import time
from collections.abc import Callable, Iterator

import structlog

from station.client import Client, NoAnswer, Refused
from station.schema import Body, Event, Result, Status
from station.ui.board import Board
from station.ui.hub import Hub

log = structlog.get_logger("ui")
MISSED = 3  # heartbeats
TICK_S = 0.1
CATCH_UP = 20_000  # parts fetched at start for this shift's figures
STATE_S = 0.2  # state is told this often: the page's own proof of life
LOOK_S = 0.05  # and at once when heartbeats stop or come back
RETRY_S = 0.5
MakeClient = Callable[[], Client]


class Feed:
    """Runs until `stop`; survives a station that is away, restarts or has a new ledger."""

    def __init__(
        self,
        make_client: MakeClient,
        board: Board,
        hub: Hub,
        on_result: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self._make_client = make_client
        self._board = board
        self._hub = hub
        self._on_result = on_result
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._beater = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._hb: int | None = None
        self._hb_at = float("-inf")
        self._period_s = 0.2  # between heartbeats; HELLO tells

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._beater.start()

    def stop(self) -> None:
        """End within a second or so."""
        self._stop.set()
        self._thread.join(3)
        self._beater.join(1)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except (NoAnswer, Refused) as error:
                log.info("ui_waits_for_station", why=str(error))
            except Exception as error:  # a page without news would look like a quiet line
                log.error("ui_feed_failed", why=f"{type(error).__name__}: {error}", exc_info=True)
            self._stop.wait(RETRY_S)

    def _listen(self) -> None:
        """Take in bodies until stopped; raises what ends the connection."""
        client = self._make_client()
        try:
            for body in self._messages(client):
                self._take(body)
        finally:
            client.close()

    def _messages(self, client: Client) -> Iterator[Body]:
        welcome = client.hello()
        self._period_s = (welcome.hb_ms or 200) / 1000
        last = welcome.last_seq or {}
        since = {name: max(0, last.get(name, 0) - CATCH_UP) for name in ("result", "desc")}
        since["event"] = max(0, last.get("event", 0) - 20)
        streams = ("result", "desc", "event", "status")
        for body in client.subscribe(streams, since=since, timeout_s=TICK_S):
            if self._stop.is_set():
                return
            if body is not None:
                yield body

    def _take(self, body: Body) -> None:
        if isinstance(body, Status) and body.hb != self._hb:
            self._hb, self._hb_at = body.hb, time.monotonic()
        with self._board.lock:  # a page that joins between the two would miss this message
            for event, data in self._board.add(body):
                self._hub.send(event, data)
        if isinstance(body, Result):
            self._on_result(body)
        elif isinstance(body, Event):
            log.debug("event", kind=body.kind)

    def _beat(self) -> None:
        """Tell the state five times a second from a thread that the bus cannot block."""
        told_at, was = float("-inf"), False
        while not self._stop.wait(LOOK_S):
            now = time.monotonic()
            alive = now - self._hb_at < MISSED * self._period_s
            if alive != was or now - told_at >= STATE_S:
                self._board.set_alive(alive)
                self._hub.send("state", self._board.state())
                told_at, was = now, alive
