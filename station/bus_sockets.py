"""The two sockets of a station, with every option that must be set before they bind."""

import errno
import re

import zmq

from engines.errors import ConfigError, InUseError
from station.bus_types import BusConfig
from station.schema_ctl import MAX_COMMAND
from station.security import DOMAIN, Access

_LOCAL = re.compile(r"^(tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):|ipc://|inproc://)")


def check_exposure(config: BusConfig) -> None:
    """ConfigError for a bind that strangers can reach without keys, unless declared insecure."""
    for address in (config.pub, config.ctl):
        if config.keys is None and not config.insecure and not _LOCAL.match(address):
            raise ConfigError(
                f"the bus would listen on {address} without keys: run `station keys new`, set "
                "`curve = true` in [bus], or say `insecure = true` if the network is trusted"
            )


def make_socket(context: zmq.Context, kind: int, access: Access | None) -> zmq.Socket:
    """An unbound PUB or ROUTER with limits, heartbeats and, with `access`, CURVE and ZAP."""
    socket = context.socket(kind)
    socket.linger = 200
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_COMMAND)  # a peer that sends more is cut off
    socket.setsockopt(zmq.HEARTBEAT_IVL, 500)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1500)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 2000)
    # Whoever connects and says nothing is dropped after 3 s instead of 30.
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if access is not None:
        socket.curve_server = True
        socket.curve_publickey = access.station.public.encode()
        socket.curve_secretkey = access.station.secret.encode()
        socket.zap_domain = DOMAIN
        # Without this libzmq lets everybody in when no handler answers.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return socket


def bind(socket: zmq.Socket, address: str) -> str:
    """Bind and return the real address; InUseError or ConfigError when it cannot be."""
    socket.ipv6 = "[" in address
    port = address.rpartition(":")[2]
    if address.startswith("tcp://") and port.isdigit() and int(port) > 65535:
        # libzmq would cut the number to 16 bits and listen on a port nobody meant.
        raise ConfigError(f"the bus cannot listen on {address}: a port is at most 65535")
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise InUseError(
                f"{address} is in use: another station or program listens there; stop it or "
                "choose other ports in [bus]"
            ) from None
        raise ConfigError(f"the bus cannot listen on {address}: {error}") from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)
