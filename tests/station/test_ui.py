"""The page's server without a browser: data, streams, pictures, login, refusals."""

import http.client
import json
import socket
import ssl
import subprocess
import time
from datetime import datetime

import cv2
import numpy as np
import pytest
import uikit
from uikit import station as uistation

from engines.errors import ConfigError, InUseError
from station.client import Client
from station.settings import UiSettings
from station.ui.board import Board
from station.ui.gate import Gate
from station.ui.hub import Hub
from station.ui.page import page
from station.ui.product import Products, gate
from station.ui.server import Ui
from station.ui.shift import parse_starts, shift_start


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def station(tmp_path):
    scripted = uistation.ScriptedStation(tmp_path / "ledger.db")
    yield scripted
    scripted.close()


@pytest.fixture
def ui(station, tmp_path):
    uistation.make_recipe(tmp_path / "recipes")
    made = serve(station, tmp_path)
    yield made
    made.stop()


def serve(station, tmp_path, **settings):
    def client(name):
        return Client(station.bus.ctl_address, station.bus.pub_address, name=name)

    made = Ui(
        UiSettings(port=free_port(), **settings),
        client,
        tmp_path / "recipes",
        None,
        tmp_path / "flags.json",
    )
    made.start()
    return made


def ask(ui, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", ui.settings.port, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer, data


def test_parts_reach_the_snapshot_with_words_and_counts(station, ui):
    station.part("OK")
    trigger = station.part("NG", (320, 170))
    station.describe(trigger)
    station.part("UNDECIDED", picture=False)
    uikit.wait_for(lambda: json.loads(ask(ui, "/state")[1])["shift"]["parts"] == 3)
    uikit.wait_for(lambda: json.loads(ask(ui, "/state")[1])["shift"]["categories"])
    told = json.loads(ask(ui, "/state")[1])
    assert told["shift"]["yield"] == pytest.approx(1 / 3)
    assert told["shift"]["reasons"] == {"score": 1, "deadline": 1}
    assert told["shift"]["categories"] == {"pit": 1}
    assert [reject["verdict"] for reject in told["rejects"]] == ["NG", "UNDECIDED"]
    assert told["rejects"][0]["words"]["sentence"].startswith("A dark round pit")
    assert told["identity"]["bundle_sha"] == "b" * 64
    history = json.loads(ask(ui, "/history")[1])["parts"]
    assert [row[:3] for row in history] == [[0.2, 0.5, "OK"], [0.81, 0.5, "NG"]]


def test_parts_from_before_the_page_was_opened_are_caught_up(station, tmp_path):
    for _ in range(300):
        station.part("OK", picture=False)
    late = serve(station, tmp_path)
    uikit.wait_for(lambda: late.board.snapshot()["shift"]["parts"] == 300)
    late.stop()


def test_pictures_come_through_and_are_asked_for_once(station, ui):
    trigger = station.part("NG", (320, 170))
    for _ in range(5):
        answer, data = ask(ui, f"/picture/part/{trigger}:map")
        assert answer.status == 200
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 0).shape == (360, 480)
    assert station.asked.count(f"part/{trigger}:map") == 1
    assert ask(ui, "/picture/part/00000000000000ff")[0].status == 404


def test_rejects_keep_their_pictures_when_the_station_has_forgotten_them(station, ui):
    trigger = station.part("NG", (320, 170))
    uikit.wait_for(lambda: f"part/{trigger}:map" in ui.pictures._cache)
    station._pictures.clear()
    assert ask(ui, f"/picture/part/{trigger}")[0].status == 200


def test_heartbeats_that_stop_are_told_within_a_second(station, ui):
    station.part("OK")
    took = []
    for _ in range(3):  # the best of three: another process may hold both cores for a while
        uikit.wait_for(lambda: ui.board.state()["alive"])
        station.beating = False
        stopped = time.monotonic()
        uikit.wait_for(lambda: not ui.board.state()["alive"], 5)
        took.append(time.monotonic() - stopped)
        station.beating = True
    uikit.wait_for(lambda: ui.board.state()["alive"], 5)
    assert min(took) < 1.0


def test_the_stream_begins_with_everything_and_goes_on(station, ui):
    station.part("OK")
    uikit.wait_for(lambda: ui.board.snapshot()["last"])
    names = []
    connection = socket.create_connection(("127.0.0.1", ui.settings.port), 5)
    with connection, connection.makefile("rb") as lines:
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while "result" not in names:
            line = lines.readline()
            if line == b"event: snapshot\n":
                station.part("NG", (100, 180))
            if line.startswith(b"event: "):
                names.append(line[7:].decode().strip())
    assert names[0] == "snapshot"
    uikit.wait_for(lambda: len(ui.hub) == 0, 15, "the closed page leaves")


def test_a_slow_page_is_told_to_reload_and_others_hear_everything():
    hub = Hub()
    slow, quick = hub.join(), hub.join()
    heard = 0
    for n in range(1000):
        hub.send("result", {"n": n})
        heard += quick.get(0.1).count(b"event: result")
    messages = []
    while (message := slow.get(0)) != b"":
        messages.append(message)
    assert heard == 1000
    assert messages[0].startswith(b"event: resync")


def test_a_late_ok_counts_as_a_reject():
    board = Board(lambda: datetime.fromtimestamp(uikit.T0 / 1e6).astimezone())
    board.add(uikit.result(1, "OK", late=True))
    told = board.snapshot()
    assert told["shift"]["rejects"] == 1
    assert told["shift"]["reasons"] == {"late": 1}
    assert len(told["rejects"]) == 1


def test_the_board_stays_small_over_ten_thousand_parts():
    board = Board(lambda: datetime.fromtimestamp(uikit.T0 / 1e6).astimezone())
    for seq in range(1, 10_001):
        board.add(uikit.result(seq, "NG" if seq % 3 == 0 else "OK"))
    told = board.snapshot()
    assert told["shift"]["parts"] == 10_000
    assert len(told["rejects"]) == 48
    assert len(board.history()) == 2000
    assert len(json.dumps(told)) < 60_000


def test_the_shift_begins_at_its_latest_start():
    starts = parse_starts(("14:00", "06:00", "22:00"))
    day = datetime(2026, 3, 4, 13, 59)
    assert shift_start(day, starts) == datetime(2026, 3, 4, 6)
    assert shift_start(datetime(2026, 3, 4, 5, 0), starts) == datetime(2026, 3, 3, 22)
    with pytest.raises(ConfigError, match="'25:00' is no time of day"):
        parse_starts(("25:00",))


def test_a_new_shift_begins_at_zero():
    starts = [datetime.fromtimestamp(uikit.T0 / 1e6).astimezone()]
    board = Board(lambda: starts[0])
    board.add(uikit.result(1))
    starts[0] = datetime.fromtimestamp((uikit.T0 + 10_000_000) / 1e6).astimezone()
    board.add(uikit.result(200))
    assert board.snapshot()["shift"]["parts"] == 1


def test_references_are_listed_served_flagged_and_found(ui, tmp_path):
    told = json.loads(ask(ui, "/product/disc")[1])
    assert told["recipe"]["noun"] == "steel disc"
    assert len(told["references"]) == 6
    assert ask(ui, "/reference/disc/good-01.png")[0].status == 200
    body = json.dumps({"recipe": "disc", "file": "good-01.png", "why": "blurred"})
    assert ask(ui, "/flag", "POST", body)[0].status == 200
    assert json.loads(ask(ui, "/product/disc")[1])["flags"] == {"good-01.png": "blurred"}
    products = Products(tmp_path / "recipes", None, tmp_path / "flags.json")
    same = (tmp_path / "recipes/disc/references/good-03.png").read_bytes()
    assert products.nearest("disc", same) == "good-03.png"
    assert products.nearest("disc", b"no picture") is None


def test_only_pictures_in_the_memory_are_shown_not_those_held_out(tmp_path):
    folder = uistation.make_recipe(tmp_path)
    told = {"shots": [{"file": "good-02.png"}, {"file": "good-04.png"}]}
    (folder / "calibration.json").write_text(json.dumps(told))
    products = Products(tmp_path, None, tmp_path / "flags.json")
    assert products.references("disc") == ["good-02.png", "good-04.png"]


@pytest.mark.parametrize(
    "path",
    [
        "/reference/disc/../recipe.toml",
        "/reference/disc/%2e%2e%2frecipe.toml",
        "/reference/../disc/good-01.png",
        "/product/..%2f..",
        "/page.html",
        "/flags.json",
    ],
)
def test_no_path_leads_out_of_the_references(ui, path):
    answer, data = ask(ui, path)
    assert answer.status == 404 or json.loads(data)["references"] == []


def test_another_site_can_neither_read_nor_flag(ui):
    assert ask(ui, "/state", Host="evil.example")[0].status == 421
    answer, _ = ask(ui, "/flag", "POST", "{}", Origin="http://evil.example")
    assert answer.status == 403
    assert ask(ui, "/flag", "POST", "x" * 5000)[0].status == 413
    assert ask(ui, "/flag", "POST", "not json")[0].status == 400


def test_the_page_is_one_file_that_asks_nobody_else():
    text, policy = page()
    html = text.decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for outside in ("http://", "https://", "//cdn", "@import", "url("):
        assert outside not in html.replace("http://www.w3.org/2000/svg", "")


def test_another_bind_than_loopback_needs_token_and_tls(tmp_path):
    with pytest.raises(ConfigError, match=r"ui.host = '0.0.0.0' is reachable from outside"):
        Gate(UiSettings(host="0.0.0.0"))
    token = tmp_path / "token"
    token.write_text("short")
    with pytest.raises(ConfigError, match="at least 16 characters"):
        Gate(UiSettings(token_file=token))
    token.write_text("a-token-of-enough-letters")
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Gate(UiSettings(token_file=token))


def certificate(tmp_path):
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=localhost", "-days", "2"),
            *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return tmp_path / "cert.pem", tmp_path / "key.pem"


def test_login_over_tls_with_the_token(station, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-enough-letters\n")
    token.chmod(0o600)
    cert, key = certificate(tmp_path)
    ui = serve(station, tmp_path, host="0.0.0.0", token_file=token, tls_cert=cert, tls_key=key)
    context = ssl.create_default_context(cafile=str(cert))

    def request(method, path, body=None, **headers):
        connection = http.client.HTTPSConnection(
            "localhost", ui.settings.port, timeout=10, context=context
        )
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer

    try:
        assert request("GET", "/state").headers["Location"] == "/login"
        assert request("GET", "/login").status == 200
        assert request("POST", "/login", "token=wrong").headers["Location"] == "/login?wrong"
        done = request("POST", "/login", "token=a-token-of-enough-letters")
        cookie = done.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "Secure" in cookie
        assert request("GET", "/state", Cookie=cookie.split(";")[0]).status == 200
        assert request("GET", "/state", Cookie="station_ui=guess").status == 303
    finally:
        ui.stop()


def test_a_taken_port_is_one_sentence(ui):
    second = Ui(ui.settings, lambda name: None)
    with pytest.raises(InUseError, match=r"set ui\.port"):
        second.start()


def test_the_gates_figures_are_read_from_a_manifest():
    told = gate({"preset": "nano", "engines": {"detector.bank": {"parity": {"cosine": 0.9999}}}})
    assert told["facts"] == {"preset": "nano"}
    assert told["engines"][0]["figures"] == {"parity": {"cosine": 0.9999}}
