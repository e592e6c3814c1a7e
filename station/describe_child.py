"""The wire to the describer child: one socket pair, length-prefixed messages, kill at any time.

A socket pair instead of queues: a process killed while it holds a queue's lock would leave the
lock behind; a socket only ends. Requests go as pickles (parent to own child), answers as JSON.
"""

import contextlib
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from engines.describer import DescribeRequest, DescriberSettings

_HEAD = struct.Struct("<I")
# A child that reads nothing for this long is stopped or gone.
SEND_TIMEOUT_S = 5.0


class ChildGone(Exception):
    """The child has ended, or does not read; never reaches a user."""


def pack(data: bytes) -> bytes:
    """Length prefix and data."""
    return _HEAD.pack(len(data)) + data


class Child:
    """A running describer process and its end of the socket."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self._process = process
        self.socket = end
        self._buffer = bytearray()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, deadline_s: float, requests: list[DescribeRequest]) -> None:
        """Send one batch. Raises ChildGone when the child has ended or does not read."""
        self.socket.settimeout(SEND_TIMEOUT_S)
        try:
            self.socket.sendall(pack(pickle.dumps((deadline_s, requests))))
        except OSError as error:
            raise ChildGone(f"it does not take requests ({error})") from None

    def poll(self) -> dict[str, Any] | None:
        """The next whole message, or None if there is none yet. Raises ChildGone at its end."""
        self.socket.setblocking(False)
        while (message := self._next()) is None:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ChildGone(f"its connection broke ({error})") from None
            if not data:
                raise ChildGone(f"it ended ({self._ending()})")
            self._buffer += data
        return message

    def signal_kill(self) -> None:
        """Only send the signal: safe from another thread while the owner uses the socket."""
        self._process.kill()

    def kill(self) -> None:
        """Kill and reap the child and close its socket; safe to call twice."""
        self._process.kill()
        # A process in uninterruptible sleep is reaped by the next call or at exit.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        with contextlib.suppress(OSError):
            self.socket.close()

    def _next(self) -> dict[str, Any] | None:
        if len(self._buffer) < _HEAD.size:
            return None
        (size,) = _HEAD.unpack_from(self._buffer)
        if len(self._buffer) < _HEAD.size + size:
            return None
        data = bytes(self._buffer[_HEAD.size : _HEAD.size + size])
        del self._buffer[: _HEAD.size + size]
        message: dict[str, Any] = json.loads(data)
        return message

    def _ending(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "still closing"
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def start_child(settings: DescriberSettings) -> Child:
    """Start the worker with its end of a socket pair as an inherited file descriptor."""
    ours, theirs = socket.socketpair()
    with theirs:
        # -P and an explicit path: a folder named `station` in the working directory is not ours.
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "station.describe_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=env,
        )
    ours.settimeout(SEND_TIMEOUT_S)
    child = Child(process, ours)
    with contextlib.suppress(OSError):  # a child that died at once is noticed by poll
        ours.sendall(pack(settings.model_dump_json().encode()))
    return child
