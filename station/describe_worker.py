"""The describer child: `python -m station.describe_worker FD`, started by station.describe.

It lowers itself to idle priority before it loads anything, dies with its parent, and leaves after
`recycle_after` parts so that no leak of a long run stays.
"""

import contextlib
import ctypes
import json
import os
import pickle
import signal
import socket
import struct
import sys
from typing import Any

from engines.consistency import contradiction
from engines.describer import Describer, DescriberSettings, Description, open_describer

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until the parent closes its end (0) or it is time to be recycled (0)."""
    become_idle()
    gone = (EOFError, BrokenPipeError, ConnectionResetError)
    with socket.socket(fileno=int(sys.argv[1])) as end, contextlib.suppress(*gone):
        serve(end)
    return 0


def become_idle() -> None:
    """Idle scheduling, no reaction to Ctrl-C (the parent decides), death with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        # Seen to keep verdict p99 at 16 ms where normal priority gave 59.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError):  # a container may forbid it: nice 19 is the next best
        os.nice(19)


def serve(end: socket.socket) -> None:
    """Load, say ready, then answer batch by batch. EOFError when the parent is gone."""
    settings = DescriberSettings.model_validate_json(receive(end))
    describer = open_describer(settings)
    source = "template" if describer.name == "template" else "llm"
    prefix = getattr(describer, "prefix_note", "")
    say(
        end, kind="ready", source=source, model=describer.name, note=describer.reason, prefix=prefix
    )
    done = 0
    while done < settings.recycle_after:
        deadline_s, requests = pickle.loads(receive(end))
        for description in answers(describer, requests, deadline_s):
            say(end, kind="described", description=description.model_dump(mode="json"))
        done += len(requests)
        say(end, kind="idle", leaves=done >= settings.recycle_after)


def answers(describer: Describer, requests: list[Any], deadline_s: float) -> list[Description]:
    """Descriptions of one batch, each held against its map."""
    said = describer.describe_many(requests, deadline_s)
    return [
        d.model_copy(update={"contradiction": contradiction(d, r.facts())})
        for d, r in zip(said, requests, strict=True)
    ]


def say(end: socket.socket, **message: Any) -> None:
    """Send one JSON message."""
    data = json.dumps(message).encode()
    end.sendall(struct.pack("<I", len(data)) + data)


def receive(end: socket.socket) -> bytes:
    """One whole message; EOFError when the parent closed its end."""
    return _exactly(end, struct.unpack("<I", _exactly(end, 4))[0])


def _exactly(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = end.recv(min(1 << 20, size - len(data)))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())
