"""Restart policy, heartbeat and readiness: small, and with injected clocks."""

import os
import socket

from station.sdnotify import notify, watchdog_s
from station.supervise import Backoff, Heartbeat, Readiness, RestartCap, Ticks


def test_backoff_doubles_to_its_limit_and_starts_again():
    backoff = Backoff(0.5, 8.0)
    assert [backoff.next_s() for _ in range(6)] == [0.5, 1, 2, 4, 8, 8]
    backoff.reset()
    assert backoff.next_s() == 0.5


def test_a_restart_cap_allows_so_many_in_its_window():
    now = [0.0]
    cap = RestartCap(most=2, window_s=10, clock=lambda: now[0])
    assert [cap.allow(), cap.allow(), cap.allow()] == [True, True, False]
    now[0] = 10.5
    assert cap.allow()


def test_hb_moves_only_if_every_worker_ticked():
    now = [1]
    ticks = Ticks(lambda: now[0])
    heart = Heartbeat(ticks, ("capture", "infer"))
    ticks.tick("capture")
    assert heart.beat(now[0]) == 0
    ticks.tick("infer")
    assert heart.beat(now[0]) == 1
    now[0] = 5
    ticks.tick("capture")
    assert heart.beat(now[0]) == 1
    ticks.tick("infer")
    assert heart.beat(now[0]) == 2


def test_a_declared_engine_call_counts_as_ticking_until_its_deadline():
    now = [1]
    ticks = Ticks(lambda: now[0])
    heart = Heartbeat(ticks, ("infer",))
    ticks.busy_until("infer", 100)
    now[0] = 50
    assert heart.beat(now[0]) == 1
    now[0] = 150
    assert heart.beat(now[0]) == 1


def test_ready_is_the_absence_of_faults_and_changes_are_told_once():
    told = []
    ready = Readiness(lambda state, faults: told.append((state, faults)))
    fault = [None]
    ready.probe("camera", lambda: fault[0])
    ready.set("start", None)
    assert ready.evaluate() == (True, ())
    fault[0] = "no frame"
    assert ready.evaluate() == (False, ("no frame",))
    ready.evaluate()
    assert told == [(True, ()), (False, ("no frame",))]


def test_systemd_hears_of_readiness(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        monkeypatch.setitem(os.environ, "NOTIFY_SOCKET", path)
        monkeypatch.setitem(os.environ, "WATCHDOG_USEC", "5000000")
        assert notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    assert watchdog_s() == 2.5
    monkeypatch.delitem(os.environ, "NOTIFY_SOCKET")
    assert not notify("READY=1")
