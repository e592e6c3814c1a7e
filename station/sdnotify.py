"""systemd's notify protocol: one datagram to $NOTIFY_SOCKET, nothing where there is none."""

import os
import socket


def notify(message: str) -> bool:
    """Send e.g. "READY=1", "WATCHDOG=1", "STOPPING=1"; False when not run by systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(message.encode(), address)
        except OSError:
            return False
    return True


def watchdog_s() -> float | None:
    """How often systemd wants to be told (half its limit), None when it does not."""
    limit = os.environ.get("WATCHDOG_USEC")
    return int(limit) / 2e6 if limit and limit.isdigit() else None
