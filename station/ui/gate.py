"""Who may see the page: everybody on loopback, elsewhere only over TLS and with the token."""

import hmac
import secrets
import ssl
import stat
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from engines.errors import ConfigError
from station.settings import UiSettings

COOKIE = "station_ui"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
MIN_TOKEN = 16


class Gate:
    """The login. Sessions live in memory: a restart of the page asks for the token again."""

    def __init__(self, settings: UiSettings) -> None:
        """ConfigError when the settings would show the page to strangers."""
        self.loopback = settings.host in LOOPBACK
        self._token = _token(settings.token_file) if settings.token_file else None
        self.tls = _tls(settings)
        if not self.loopback and (self._token is None or self.tls is None):
            raise ConfigError(
                f"ui.host = {settings.host!r} is reachable from outside: set ui.token_file, "
                'ui.tls_cert and ui.tls_key, or ui.host = "127.0.0.1"'
            )
        self._sessions: set[str] = set()

    @property
    def open(self) -> bool:
        """Whether no login is needed."""
        return self._token is None

    def login(self, token: str) -> str | None:
        """The Set-Cookie value for the right token, else None."""
        if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        session = secrets.token_urlsafe(24)
        self._sessions.add(session)
        secure = "; Secure" if self.tls else ""
        return f"{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/; Max-Age=43200{secure}"

    def allows(self, cookie_header: str | None) -> bool:
        """Whether a request with this Cookie header may see anything."""
        if self.open:
            return True
        try:
            cookie = SimpleCookie(cookie_header or "").get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and cookie.value in self._sessions

    def host_allowed(self, host_header: str | None) -> bool:
        """On loopback only loopback names: a foreign name means another site drives the browser."""
        if not self.loopback:
            return True
        name = (host_header or "").rsplit(":", 1)[0] if host_header else ""
        return name.strip("[]") in LOOPBACK


def _token(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"ui.token_file {path}: cannot be read ({error.strerror})") from None
    if len(text) < MIN_TOKEN:
        raise ConfigError(f"ui.token_file {path}: a token needs at least {MIN_TOKEN} characters")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise ConfigError(f"ui.token_file {path}: readable by others; run chmod 600 {path}")
    return text


def _tls(settings: UiSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ConfigError("ui.tls_cert and ui.tls_key belong together: set both or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ui.tls_cert {settings.tls_cert}: cannot be used ({error})") from None
    return context
