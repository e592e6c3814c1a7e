"""What the ledger's tests share: a ledger in a folder, clocks moved by hand, a disk that fills."""

import threading
import time

from buskit import draft, opening

from station.ledger import Ledger
from station.ledger_state import Moment


def make(folder, **more):
    return Ledger(folder / "ledger.db", line="line1", station="st1", **more)


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self):
        self.ns = 1_000_000_000

    def __call__(self):
        return Moment(self.ns, self.ns // 1000)


def inspect(ledger, trigger_id=None, score=0.1, **changes):
    part = ledger.open_part(opening(trigger_id, **changes)).result(30)
    return ledger.commit_result(draft(part.trigger_id, score)).result(30)


class JumpingClock(Clock):
    """Past the deadline from the n-th reading on: the commit itself took too long."""

    def __init__(self, readings):
        super().__init__()
        self.readings = readings

    def __call__(self):
        self.readings -= 1
        if self.readings < 0:
            return Moment(self.ns + 60_000_000_000, self.ns // 1000)
        return super().__call__()


# -- faults --------------------------------------------------------------------------------------


def fill_the_disk(ledger):
    """SQLITE_FULL from now on: the file may not grow by one page."""

    def limit(store):
        pages = store.db.execute("PRAGMA page_count").fetchone()[0]
        store.db.execute(f"PRAGMA max_page_count={pages}")
        return True

    assert ledger._read(limit).result(30)


def until(condition, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def hold(ledger):
    """Keep the writer busy until the event is set, so that what follows is one group."""
    gate, entered = threading.Event(), threading.Event()

    def wait(_):
        entered.set()
        gate.wait(30)
        return ()

    ledger._read(wait)
    assert entered.wait(30)
    return gate
