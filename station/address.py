"""Addresses of a station's sockets, as a person writes them and as a client connects to them."""

import re

import zmq

from engines.errors import ConfigError

_WHOLE = re.compile(r"^(tcp://[^\s/*]+:(?P<port>\d{1,5})|(ipc|inproc)://\S+)$")
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}
MAX_PORT = 65535


def check_address(address: str) -> str:
    """The address itself; ConfigError when nothing could be connected to it."""
    found = _WHOLE.match(address)
    if found is None or not 0 < int(found["port"] or 1) <= MAX_PORT:
        raise ConfigError(
            f"{address!r} is no address of a station: it needs tcp://host:port, "
            "for example tcp://127.0.0.1:5560"
        )
    return address


def connect(socket: zmq.Socket, address: str) -> None:
    """Connect, over IPv6 where the address is one: libzmq does not by itself."""
    socket.ipv6 = "[" in address
    socket.connect(address)


def reach(host: str, port: int) -> str:
    """Where to connect to what was bound to `host` (on this machine, if that is every address)."""
    host = _ANYWHERE.get(host, host)
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
