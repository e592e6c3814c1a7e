"""The page over http(s): a handler per request, nothing but GET and two small POSTs."""

import json
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from station.ui.hub import encode
from station.ui.page import login_page, page

if TYPE_CHECKING:
    from station.ui.server import Ui

MAX_POST = 4096
BEAT_S = 10.0  # a comment line this often keeps proxies and dead sockets honest
WRONG_TOKEN_S = 1.0
HTML = "text/html; charset=utf-8"
JSON = "application/json"


class Handler(BaseHTTPRequestHandler):
    """One request. `ui` is set by the server."""

    ui: "Ui"
    protocol_version = "HTTP/1.1"
    server_version = "station"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer a page, a stream or a picture."""
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if not self.ui.gate.host_allowed(self.headers.get("Host")):
            return self._send(421, "text/plain", b"wrong host name\n")
        if path == "/login":
            return self._html(*login_page())
        if not self.ui.gate.allows(self.headers.get("Cookie")):
            return self._redirect("/login")
        handler = self._route(path) or (lambda: self._send(404, "text/plain", b"not here\n"))
        return handler()

    def do_POST(self) -> None:
        """Log in, or flag a reference."""
        if not self.ui.gate.host_allowed(self.headers.get("Host")) or not self._same_origin():
            return self._send(403, "text/plain", b"another site may not do this\n")
        body = self._body()
        if body is None:
            return self._send(413, "text/plain", b"too much\n")
        path = urlsplit(self.path).path
        if path == "/login":
            return self._login(body)
        if not self.ui.gate.allows(self.headers.get("Cookie")):
            return self._send(401, "text/plain", b"log in first\n")
        if path == "/flag":
            return self._flag(body)
        return self._send(404, "text/plain", b"not here\n")

    def _route(self, path: str) -> Callable[[], None] | None:
        head, _, rest = path.removeprefix("/").partition("/")
        ui = self.ui
        routes: dict[str, Callable[[], None]] = {
            "": lambda: self._html(*page()),
            "events": self._events,
            "state": lambda: self._json(ui.board.snapshot()),
            "history": lambda: self._json({"parts": ui.board.history()}),
            "product": lambda: self._json(
                ui.products.describe(rest) | {"identity": ui.board.snapshot()["identity"]}
            ),
            "picture": lambda: self._picture(rest),
            "reference": lambda: self._reference(rest),
            "nearest": lambda: self._nearest(rest),
        }
        return routes.get(head)

    def _events(self) -> None:
        page_ = self.ui.hub.join()
        if page_ is None:
            return self._send(503, "text/plain", b"too many pages are open\n")
        self.close_connection = True
        try:
            self._head(200, "text/event-stream", None)
            with self.ui.board.lock:
                snapshot = encode("snapshot", self.ui.board.snapshot())
            self.wfile.write(b"retry: 500\n\n" + snapshot)
            while (message := page_.get(BEAT_S)) is not None:
                self.wfile.write(message or b": beat\n\n")
        except OSError:
            pass  # the page was closed
        finally:
            self.ui.hub.leave(page_)

    def _picture(self, ref: str) -> None:
        found = self.ui.pictures.get(ref)
        if found is None:
            return self._send(404, "text/plain", b"the station has this picture no more\n")
        return self._send(200, found[0], found[1], cache=True)

    def _reference(self, rest: str) -> None:
        name, _, file = rest.partition("/")
        path = self.ui.products.reference(name, file)
        if path is None:
            return self._send(404, "text/plain", b"no such reference\n")
        media = "image/png" if path.suffix.lower() == ".png" else "image/jpeg"
        return self._send(200, media, path.read_bytes(), cache=True)

    def _nearest(self, rest: str) -> None:
        name, _, ref = rest.partition("/")
        picture = self.ui.pictures.get(ref)
        file = self.ui.products.nearest(name, picture[1]) if picture else None
        return self._json({"file": file, "region": self.ui.products.region(name)})

    def _login(self, body: bytes) -> None:
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        cookie = self.ui.gate.login(token)
        if cookie is None:
            time.sleep(WRONG_TOKEN_S)
            return self._redirect("/login?wrong")
        return self._redirect("/", cookie)

    def _flag(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
            name, file, why = str(asked["recipe"]), str(asked["file"]), str(asked["why"])
        except (ValueError, KeyError, TypeError):
            return self._send(400, "text/plain", b"recipe, file and why are needed\n")
        done = self.ui.products.flag(name, file, why)
        return self._json({"done": done}, 200 if done else 404)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_POST:
            self.close_connection = True
            return None
        return self.rfile.read(int(length))

    def _same_origin(self) -> bool:
        """Browsers send Origin with every POST; without one it is no browser of another site."""
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == self.headers.get("Host")

    def _json(self, data: dict[str, Any], code: int = 200) -> None:
        self._send(code, JSON, json.dumps(data).encode())

    def _html(self, text: bytes, policy: str) -> None:
        self._head(200, HTML, len(text), {"Content-Security-Policy": policy})
        self.wfile.write(text)

    def _redirect(self, where: str, cookie: str | None = None) -> None:
        extra = {"Location": where} | ({"Set-Cookie": cookie} if cookie else {})
        self._head(303, "text/plain", 0, extra)

    def _send(self, code: int, media: str, data: bytes, *, cache: bool = False) -> None:
        self._head(code, media, len(data), {}, cache=cache)
        self.wfile.write(data)

    def _head(
        self,
        code: int,
        media: str,
        length: int | None,
        extra: dict[str, str] | None = None,
        *,
        cache: bool = False,
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", media)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "private, max-age=600" if cache else "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests of a page that reloads itself are no news."""
