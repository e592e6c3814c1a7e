"""The small http server of the daemon: /metrics, /healthz, /readyz, /status. Read only."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from engines.errors import InUseError
from station.metrics import Metrics, StatusSource
from station.settings import MetricsSettings

STALL_S = 0.7  # three missed heartbeats of 200 ms are NOT READY
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
Answer = tuple[int, str, bytes]


class MetricsServer:
    """Serves until `stop`. `status` returns the last status without side effects."""

    def __init__(self, settings: MetricsSettings, metrics: Metrics, status: StatusSource) -> None:
        self._metrics = metrics
        self._status = status
        self._http: ThreadingHTTPServer | None = None
        self._settings = settings

    @property
    def port(self) -> int:
        """The bound port (0 when switched off)."""
        return self._http.server_port if self._http else 0

    def start(self) -> None:
        """Bind and serve in a thread; InUseError (exit 9) if the port is taken."""
        if self._settings.port == 0:
            return
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            timeout = 5  # a client that sends nothing must not hold a thread for ever

            def do_GET(self) -> None:
                code, media, data = answer(self.path.split("?")[0])
                self.send_response(code)
                self.send_header("Content-Type", media)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass  # a scrape every few seconds is not news

        where = (self._settings.host, self._settings.port)
        try:
            self._http = ThreadingHTTPServer(where, Handler)
        except OSError as error:
            raise InUseError(
                f"metrics port {where[0]}:{where[1]}: {error.strerror}; "
                "stop the other program or set metrics.port (0 = off)"
            ) from None
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop serving; safe to call twice."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def _answer(self, path: str) -> Answer:
        if path == "/metrics":
            return 200, PROMETHEUS, self._metrics.text()
        if path == "/status":
            return 200, "application/json", self._status().model_dump_json().encode()
        if path == "/readyz":
            status, heard = self._status(), self._beats()
            faults = [*status.faults, *([] if heard else ["the heartbeat stands still"])]
            ready = status.ready and heard
            return _state(ready, {"ready": ready, "faults": faults})
        if path == "/healthz":
            alive = self._beats()
            return _state(alive, {"alive": alive})
        return 404, "text/plain", b"/metrics /healthz /readyz /status\n"

    def _beats(self) -> bool:
        """Whether the heartbeat moves within the time of three."""
        first = self._status().hb
        end = time.monotonic() + STALL_S
        while time.monotonic() < end:
            if self._status().hb != first:
                return True
            time.sleep(0.05)
        return False


def _state(good: bool, body: dict[str, object]) -> Answer:
    return (200 if good else 503), "application/json", json.dumps(body).encode()
