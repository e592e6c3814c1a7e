"""Find the line of a key in a TOML text, for error messages (tomllib keeps no positions)."""

import re

_TABLE = re.compile(r"^\s*\[\[?\s*(?P<name>[^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"^\s*(?P<key>[A-Za-z0-9_\-.\"' ]+?)\s*=")


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(p.strip().strip("\"'") for p in dotted.split("."))


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """1-based line of the key path, of its nearest table where the key itself is not written."""
    want = tuple(str(p) for p in path)
    table: tuple[str, ...] = ()
    nearest: int | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            table = _parts(header["name"])
            here = table
        elif key := _KEY.match(line):
            here = table + _parts(key["key"])
        else:
            continue
        if here == want:
            return number
        if here == want[: len(here)]:
            nearest = number
    return nearest
