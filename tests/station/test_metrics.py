"""The numbers page: what is counted, and what a load balancer may believe."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import uikit
from faultkit.camera import FaultCamera
from faultkit.engines import FakeEngine
from faultkit.station import parts_folder, results, station, until

from engines.errors import InUseError
from station.after import Totals
from station.metrics import Metrics
from station.metrics_http import MetricsServer
from station.options import Outcome
from station.schema import StatusFacts
from station.settings import MetricsSettings
from station.summary import print_summary


class Station:
    """A status whose heartbeat moves while it lives."""

    def __init__(self):
        self.alive, self.ready, self.hb, self.faults = True, True, 0, ()

    def __call__(self):
        self.hb += self.alive
        return StatusFacts(
            ready=self.ready, busy=False, mode="triggered", hb=self.hb, faults=self.faults, fps=9.5
        )


@pytest.fixture
def served():
    station = Station()
    metrics = Metrics(station)
    for seq, verdict in enumerate(["OK", "OK", "NG", "UNDECIDED", "ERROR"], 1):
        metrics.part(uikit.record(seq, verdict, size=8))
    server = MetricsServer(MetricsSettings(port=_free_port()), metrics, station)
    server.start()
    yield station, server
    server.stop()


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_parts_are_counted_by_verdict_and_reason(served):
    _, server = served
    code, text = get(server, "/metrics")
    assert code == 200
    assert 'station_parts_total{reason="score",verdict="OK"} 2.0' in text
    assert 'station_parts_total{reason="deadline",verdict="UNDECIDED"} 1.0' in text
    assert "station_verdict_seconds_count 5.0" in text
    assert 'station_score_ratio_bucket{le="1.0"} 2.0' in text
    assert "station_fps 9.5" in text


def test_readyz_is_ready_and_healthz_is_the_heartbeat(served):
    station, server = served
    assert get(server, "/readyz")[0] == 200
    assert get(server, "/healthz")[0] == 200
    station.ready, station.faults = False, ("camera",)
    assert get(server, "/readyz")[0] == 503
    assert json.loads(get(server, "/readyz")[1])["faults"] == ["camera"]
    assert 'station_fault{fault="camera"} 1.0' in get(server, "/metrics")[1]
    station.alive = False
    assert get(server, "/healthz")[0] == 503


def test_status_is_the_status_and_other_paths_are_404(served):
    _, server = served
    assert json.loads(get(server, "/status")[1])["mode"] == "triggered"
    assert get(server, "/etc/passwd")[0] == 404


def test_a_taken_port_is_one_sentence_with_exit_9(served):
    _, server = served
    second = MetricsServer(MetricsSettings(port=server.port), Metrics(), Station())
    with pytest.raises(InUseError, match=f":{server.port}: .*metrics.port"):
        second.start()


def test_what_observers_could_not_take_and_the_drift_are_told_as_they_are_now():
    now = {"dropped": {"record": 0}, "p": 1.0}
    metrics = Metrics(dropped=lambda: now["dropped"], drift=lambda: now["p"])
    assert 'station_observer_dropped_total{observer="record"} 0.0' in metrics.text().decode()
    now.update(dropped={"record": 3}, p=1e-6)
    text = metrics.text().decode()
    assert 'station_observer_dropped_total{observer="record"} 3.0' in text
    assert "station_drift_p 1e-06" in text


def test_the_dashboard_asks_only_for_numbers_and_labels_of_a_running_station(tmp_path):
    port, parts = _free_port(), parts_folder(tmp_path / "in", 12)
    more = {"metrics": {"port": port}, "drift": {"enabled": True}, "source": {"loop": True}}
    with station(tmp_path, str(parts), **more) as (daemon, client):
        until(lambda: len(results(client)) >= 12)
        daemon.readiness.set("test", "a fault for the dashboard")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    samples: dict[str, str] = {}
    for name, labels in re.findall(r"^([a-z_]+)(\{.*\})? \S+$", text, re.M):
        samples[name] = samples.get(name, "") + labels
    dashboard = json.loads((Path(__file__).parents[2] / "docs/grafana-dashboard.json").read_text())
    asked = [target for panel in dashboard["panels"] for target in panel["targets"]]
    for target in asked:
        expression = target["expr"]
        names = re.findall(r"station_[a-z_]+", expression)
        assert names and set(names) <= set(samples), expression
        labels = re.findall(r"by \(([a-z_]+)\)", expression)
        labels += re.findall(r"\{([a-z_]+)[!=]", expression)
        labels += re.findall(r"\{\{([a-z_]+)\}\}", target["legendFormat"])
        for label in labels:
            assert any(f'{label}="' in samples[name] for name in names), (expression, label)
    assert len(asked) > 10


LOST = {"stale": 3, "superseded": 40, "refused": 0, "overrun": 7, "repeats": 2, "restarts": 1}


def test_what_a_camera_lost_is_on_the_page_by_cause():
    text = Metrics(losses=lambda: {"top": LOST, "side": {"stale": 1}}).text().decode()
    assert 'station_frames_dropped_total{camera="top",cause="superseded"} 40.0' in text
    assert 'station_frames_dropped_total{camera="side",cause="stale"} 1.0' in text
    assert 'station_camera_repeats_total{camera="top"} 2.0' in text
    assert 'station_camera_restarts_total{camera="top"} 1.0' in text
    assert 'cause="repeats"' not in text


def test_what_a_camera_lost_is_in_the_summary_of_its_run(capsys):
    totals = Totals({"OK": 2}, {}, 0, (1000, 1000), (), 0, 10**9)
    print_summary(Outcome(totals, losses={"": LOST}), "line1/st1")
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "camera 3 frames too old, 40 frames passed over" in told
    assert "refused" not in told and "frames without a part" not in told


def test_a_running_camera_tells_its_losses(tmp_path):
    with (
        FaultCamera(fps=50) as camera,
        station(
            tmp_path,
            camera.url,
            FakeEngine(delay_s=0.1),
            engine_kw={"workers": 1},
            trigger={"mode": "free_run", "staleness_ms": 5000},
            metrics={"port": _free_port()},
        ) as (daemon, client),
    ):
        observers = {o.name: o._observer for o in daemon.after.observers}
        lane = daemon.lanes[""]
        until(lambda: sum(lane.losses()[cause] for cause in ("overrun", "superseded")) >= 5, 20)
        camera.mode = "freeze"
        until(lambda: lane.losses()["repeats"] >= 1, 20)
        page = observers["metrics"].text().decode()
        assert results(client)
    assert 'station_camera_repeats_total{camera=""}' in page
    drops = re.findall(r'station_frames_dropped_total{camera="",cause="\w+"} (\d+)', page)
    assert len(drops) == 4 and sum(map(int, drops)) >= 5
