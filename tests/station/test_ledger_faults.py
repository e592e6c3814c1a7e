"""The ledger and its faults: nothing is sent that is not durable, and it heals to ERROR."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from buskit import draft, opening
from ledgerkit import fill_the_disk, hold, inspect, make, until

from engines.errors import LedgerError
from station.schema import parse


@pytest.fixture
def ledger(tmp_path):
    found = make(tmp_path)
    yield found
    found.close()


def test_a_full_disk_sends_nothing_and_heals_to_error(tmp_path):
    ledger = make(tmp_path)
    heard = []
    ledger.add_listener(heard.append)
    parts = [ledger.open_part(opening()).result(30) for _ in range(400)]
    fill_the_disk(ledger)
    futures = [ledger.commit_result(draft(part.trigger_id)) for part in parts]
    failed = [f for f in futures if f.exception(30) is not None]
    assert failed and all(isinstance(f.exception(), LedgerError) for f in failed)
    assert not ledger.healthy and "full" in ledger.fault
    assert len(heard) == len(futures) - len(failed), "what was not committed was not heard"
    with pytest.raises(LedgerError):
        ledger.open_part(opening()).result(30)
    until(lambda: ledger.healthy)  # the file is opened anew, and there the limit is gone
    assert ledger.fault is None and ledger.open_parts == 0
    results = [parse(row.body) for row in heard if row.stream == "result"]
    assert [r.seq for r in results] == list(range(1, len(parts) + 1))
    verdicts = {r.trigger_id: r for r in results}
    for part, future in zip(parts, futures, strict=True):
        verdict = verdicts[part.trigger_id]
        if future.exception() is None:
            assert verdict.accept
        else:
            assert (verdict.verdict, verdict.reason) == ("ERROR", "restart")
    assert parse(heard[-1].body).kind == "ledger_recovered"
    assert inspect(ledger).seq == len(parts) + 1
    ledger.close()


def test_parts_in_work_live_through_a_healed_fault(tmp_path):
    ledger = make(tmp_path)
    working = ledger.open_part(opening(deadline_ms=60_000)).result(30)
    ledger._fail([], "a fault for the test")
    assert not ledger.healthy
    until(lambda: ledger.healthy)
    assert parse(ledger.commit_result(draft(working.trigger_id)).result(30).body).accept
    ledger.close()


def test_an_unseen_verdict_found_after_a_fault_is_marked_late(tmp_path):
    """The commit ended but its confirmation did not: nobody may act on it any more."""
    ledger = make(tmp_path)
    part = ledger.open_part(opening(deadline_ms=60_000)).result(30)
    broken = Future()

    def fail_after_commit(store):
        real = store.transaction

        def transaction():
            store.transaction = real
            return _RaiseAfter(real())

        store.transaction = transaction
        broken.set_result(True)

    ledger._read(fail_after_commit).result(30)
    with pytest.raises(LedgerError, match="after the commit"):
        ledger.commit_result(draft(part.trigger_id)).result(30)
    until(lambda: ledger.healthy)
    rows = ledger.fetch("result", ledger.epoch, 1).result(30).bodies
    assert len(rows) == 1
    assert parse(rows[0]).verdict == "OK" and parse(rows[0]).late and not parse(rows[0]).accept
    ledger.close()


class _RaiseAfter:
    def __init__(self, inner):
        self.inner = inner

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, *exc):
        self.inner.__exit__(*exc)
        raise sqlite3.OperationalError("disk I/O error after the commit")


def test_a_disk_that_stays_full_stays_unhealthy(tmp_path):
    """A real limit of the operating system: no file of this process may grow (EFBIG)."""
    script = """
import resource, signal, sys, time
from pathlib import Path
from buskit import opening, draft
from station.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]) / "ledger.db", line="l", station="s")
heard = []
ledger.add_listener(heard.append)
part = ledger.open_part(opening()).result(30)
resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
try:
    ledger.commit_result(draft(part.trigger_id)).result(30)
    print("committed")
except Exception as error:
    print(type(error).__name__)
time.sleep(1.5)
print(ledger.healthy, len(heard))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
end = time.monotonic() + 30
while not ledger.healthy and time.monotonic() < end:
    time.sleep(0.05)
print(ledger.healthy, [row.stream.value for row in heard])
ledger.close()
"""
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )
    assert done.stdout.splitlines() == ["LedgerError", "False 0", "True ['result', 'event']"], (
        done.stdout + done.stderr
    )


def test_a_failing_listener_costs_no_verdict(ledger):
    heard = []
    ledger.add_listener(lambda _: 1 / 0)
    ledger.add_listener(heard.append)
    assert inspect(ledger).first and len(heard) == 1 and ledger.healthy


def test_nobody_can_cancel_what_was_handed_in(ledger):
    trigger = ledger.open_part(opening()).result(30).trigger_id
    gate = hold(ledger)
    future = ledger.commit_result(draft(trigger))
    assert not future.cancel()
    gate.set()
    assert future.result(30).first
