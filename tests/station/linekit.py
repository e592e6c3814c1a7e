"""A killable station: the real daemon with its children, on fixed ports, with a fake engine.

`python linekit.py FOLDER SPEC SETTINGS` runs until SIGTERM; SETTINGS is JSON of sections. The
source is a live camera (child process), words come from the describer child, a recorder writes
MCAP: everything that can be killed on a line, around an engine that takes a millisecond.
"""

import json
import signal
import sys
import threading
from pathlib import Path

from faultkit.engines import FakeEngine, FakeRoom
from faultkit.station import settings_in

from station.daemon import Daemon, Options
from station.logs import set_up

LINEKIT = Path(__file__).resolve()
# Half of the camera's pictures lie below it (`faultkit.camera.picture`, level 120).
THRESHOLD = 0.4707


def sections(ctl_port: int, pub_port: int, folder: Path) -> dict:
    """Settings of a triggered station with every child and the recorder."""
    return {
        "station": {"line": "l1", "name": "s1"},
        "bus": {"pub_port": pub_port, "ctl_port": ctl_port},
        "trigger": {"by": "bus", "mode": "triggered"},
        "metrics": {"port": 0},
        "describe": {"enabled": True, "backend": "template"},
        "record": {"enabled": True, "folder": str(folder / "recordings"), "every_ok": 1},
    }


def children(pid: int) -> list[int]:
    """Process ids of the direct children."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def main() -> None:
    folder, spec, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    made = settings_in(folder, spec, **settings)
    set_up(made.log)
    daemon = Daemon(made, Options(engine=FakeRoom(FakeEngine(0.001), threshold=THRESHOLD)))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    daemon.start()
    stop.wait()
    daemon.close()


if __name__ == "__main__":
    main()
