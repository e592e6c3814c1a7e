"""Whatever goes wrong around a camera's child, the next attempt comes."""

import os
import signal
import subprocess

import pytest
from faultkit.camera import FaultCamera
from faultkit.station import station, until

from station.schema import Reason, Verdict, new_id
from station.settings import SourceSettings
from station.sources.base import open_source


@pytest.fixture
def source():
    with FaultCamera(fps=25) as camera:
        made = open_source(camera.url, SourceSettings(spec=camera.url))
        made.open()
        until(lambda: made.health().ok)
        yield made
        made.close()


def test_a_child_that_does_not_die_at_once_is_left_behind(source, monkeypatch):
    waits = iter([subprocess.TimeoutExpired("camera", 1.0)])

    def wait(self, timeout=None):
        for error in waits:
            raise error
        return true_wait(self, timeout)

    true_wait, first = subprocess.Popen.wait, source.pid
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    os.kill(first, signal.SIGKILL)
    until(lambda: source.health().ok and source.pid not in (None, first))


def test_a_process_that_cannot_be_started_is_tried_again(source, monkeypatch):
    true_spawn, failures = source._spawn, iter([OSError(12, "Cannot allocate memory")] * 2)

    def spawn():
        for error in failures:
            raise error
        true_spawn()

    first, told = source.pid, []
    source.on_event = lambda kind, text: told.append(text)
    monkeypatch.setattr(source, "_spawn", spawn)
    os.kill(first, signal.SIGKILL)
    until(lambda: source.health().ok and source.pid not in (None, first))
    assert sum("cannot be started (Cannot allocate memory)" in text for text in told) == 2


def test_an_error_nobody_thought_of_is_one_more_reason_to_try_again(source, monkeypatch):
    true_take, failures = source._take, iter([RuntimeError("surprise")])

    def take(message):
        for error in failures:
            raise error
        true_take(message)

    monkeypatch.setattr(source, "_take", take)
    until(lambda: "surprise" in (source.health().fault or ""))
    until(lambda: source.health().ok)


def test_a_stream_over_http_says_what_it_cannot_be_asked(tmp_path):
    with FaultCamera(fps=25) as camera:
        asked = SourceSettings(spec=camera.url, width=9999, controls={"exposure": 100})
        source = open_source(camera.url, asked)
        source.open()
        try:
            until(lambda: source.read(0.5) is not None)
            assert "width, exposure: set it at the camera, not over HTTP" in source.health().fault
        finally:
            source.close()


def test_a_changeover_brings_the_cameras_controls_along(tmp_path):
    """Over HTTP they cannot be set: then the new recipe is not ready, and says why."""
    kw = {"trigger": {"by": "bus"}}
    with FaultCamera(fps=25) as camera, station(tmp_path, camera.url, **kw) as (daemon, client):
        until(lambda: daemon.readiness.evaluate()[0])
        daemon.room.recipe = {"camera": {"exposure": 300}}
        client.admin("RECIPE", action="prepare", recipe="b")
        client.admin("RECIPE", action="commit")
        assert until_fault(daemon, "exposure: set it at the camera")
        daemon.room.recipe = {}
        client.admin("RECIPE", action="rollback")
        until(lambda: daemon.readiness.evaluate()[0])
        assert client.trigger(new_id()).verdict is Verdict.OK


def until_fault(daemon, text):
    """The faults that name it, once they do."""
    found = []
    until(lambda: found.extend(f for f in daemon.readiness.evaluate()[1] if text in f) or found)
    return found


def test_a_trigger_just_after_the_mode_changed_finds_its_camera_free(tmp_path):
    with FaultCamera(fps=25) as camera, station(tmp_path, camera.url) as (daemon, client):
        until(lambda: daemon.readiness.evaluate()[0])
        for _round in range(4):
            client.admin("MODE", mode="triggered")
            until(lambda: daemon.flow.open_count == 0)
            found = client.trigger(new_id(), deadline_ms=3000)
            assert (found.verdict, found.reason) == (Verdict.OK, Reason.SCORE)
            client.admin("MODE", mode="free_run")
            until(lambda: daemon.flow.open_count > 0)
