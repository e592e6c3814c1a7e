"""`station ui`: put the parts together and serve until told to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import structlog

from engines.errors import InUseError
from station.client import Client
from station.settings import UiSettings
from station.ui.board import Board
from station.ui.feed import Feed
from station.ui.gate import Gate
from station.ui.http import Handler
from station.ui.hub import Hub
from station.ui.pictures import Pictures
from station.ui.product import Products
from station.ui.shift import parse_starts, shift_start

log = structlog.get_logger("ui")
FLAGS = Path("var/ui/flags.json")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up in the middle is everyday; anything else is logged in full."""
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.exception("page_request_failed", client=str(client_address))


class Ui:
    """The page's server. `make_client(name)` gives a connected-on-demand bus client."""

    def __init__(
        self,
        settings: UiSettings,
        make_client: Callable[[str], Client],
        recipes: Path = Path("recipes"),
        bundle: Path | None = None,
        flags: Path = FLAGS,
    ) -> None:
        """ConfigError for unsafe or impossible settings."""
        starts = parse_starts(settings.shift_starts)
        self.settings = settings
        self.gate = Gate(settings)
        self.board = Board(lambda: shift_start(datetime.now().astimezone(), starts))
        self.hub = Hub()
        self.products = Products(recipes, bundle, flags)
        self.pictures = Pictures(lambda: make_client("ui-pictures"))
        self.feed = Feed(lambda: make_client("ui"), self.board, self.hub, self.pictures.prefetch)
        self._http: _Server | None = None

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        assert self._http is not None
        scheme = "https" if self.gate.tls else "http"
        return f"{scheme}://{self.settings.host}:{self._http.server_port}/"

    def start(self) -> None:
        """Bind and serve in threads; InUseError (exit 9) if the port is taken."""
        handler = type("BoundHandler", (Handler,), {"ui": self})
        where = (self.settings.host, self.settings.port)
        try:
            self._http = _Server(where, handler)
        except OSError as error:
            raise InUseError(
                f"operator page {where[0]}:{where[1]}: {error.strerror}; "
                "stop the other program or set ui.port"
            ) from None
        if self.gate.tls is not None:
            # The handshake happens in the request's own thread, not in the accepting one.
            self._http.socket = self.gate.tls.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._http.serve_forever, name="http", daemon=True).start()
        self.pictures.start()
        self.feed.start()

    def stop(self) -> None:
        """Stop serving and subscribing."""
        self.hub.stop()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self.feed.stop()
        self.pictures.stop()


def serve(
    settings: UiSettings,
    pub: str,
    ctl: str,
    keys: Path | None = None,
    recipes: Path = Path("recipes"),
    bundle: Path | None = None,
    on_ready: Callable[[str], None] = print,
) -> None:
    """Run the page until SIGTERM or Ctrl-C. `on_ready` is told the address."""

    def make_client(name: str) -> Client:
        return Client(ctl, pub, keys=keys, name=name)

    ui = Ui(settings, make_client, recipes, bundle)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    ui.start()
    on_ready(f"operator page: {ui.address}  (station at {ctl})")
    with contextlib.suppress(KeyboardInterrupt):
        stop.wait()
    ui.stop()
