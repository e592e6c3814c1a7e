"""A station process with a fast fake engine: what kill -9 tests start and shoot.

`python -m faultkit.fast_station FOLDER PUB CTL`: folder holds in/ (pictures) and the ledger;
triggered over the bus, eight parts in flight.
"""

import sys
from pathlib import Path

from faultkit.engines import FakeEngine, FakeRoom
from faultkit.station import settings_in
from station.cli_run import run
from station.options import Options


def main(folder: Path, pub: int, ctl: int) -> int:
    settings = settings_in(
        folder,
        str(folder / "in"),
        bus={"pub_port": pub, "ctl_port": ctl},
        source={"loop": True},
        trigger={"by": "bus", "in_flight": 8},
    )
    return run(settings, None, Options(engine=FakeRoom(FakeEngine(delay_s=0.002))))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
