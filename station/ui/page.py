"""The one page: its three files put together, with a policy that lets nothing else in."""

import base64
import hashlib
from functools import cache
from importlib.resources import files


def _read(name: str) -> str:
    return (files("station.ui") / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """A CSP source that allows exactly this inline text."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@cache
def page() -> tuple[bytes, str]:
    """(HTML with inline style and script, Content-Security-Policy)."""
    script = "\n".join(_read(name) for name in ("heat.js", "page.js", "why.js", "engineer.js"))
    return _assemble(_read("page.html"), _read("page.css"), script)


@cache
def login_page() -> tuple[bytes, str]:
    """The login form, without any script."""
    return _assemble(_read("login.html"), _read("page.css"), "")


def _assemble(html: str, style: str, script: str) -> tuple[bytes, str]:
    text = html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = (
        f"default-src 'none'; style-src {_source(style)}; "
        f"script-src {_source(script) if script else chr(39) + 'none' + chr(39)}; "
        "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy
