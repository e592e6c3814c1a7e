"""`station` as a user has it: real processes, the shipped bundle, a bare pyzmq and json client."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
from faultkit.station import crowded, parts_folder

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "engines" / "bundles" / "nano"
pytestmark = pytest.mark.skipif(not NANO.exists(), reason="the nano bundle is not built")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Home:
    """A working directory with ports of its own; `run` and `start` call the command there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pub, self.ctl = free_port(), free_port()
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "STATION_BUS__PUB_PORT": str(self.pub),
            "STATION_BUS__CTL_PORT": str(self.ctl),
            "STATION_ENGINE__THREADS": "1",
            "STATION_DESCRIBE__BACKEND": "template",
        }

    def command(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "station.cli", *(str(a) for a in args)]

    def run(self, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), cwd=self.folder, env={**self.env, **env},
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip

    def start(self, *args: object, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args), cwd=self.folder, env={**self.env, **env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory):
    """A home with the recipe `disc`, learned from 30 good pictures by the real command."""
    home = Home(tmp_path_factory.mktemp("home"))
    parts_folder(home.folder / "good", 30)
    done = home.run("enroll", "--recipe", "disc", "--normals", "good", "--noun", "disc")
    assert done.returncode == 0, done.stderr
    assert "threshold" in done.stdout and "rejected" in done.stdout
    return home


@pytest.fixture
def home(enrolled, tmp_path):
    """A fresh working directory beside the enrolled recipe."""
    fresh = Home(tmp_path)
    fresh.env["STATION_RECIPE__ROOT"] = str(enrolled.folder / "recipes")
    return fresh


class Ear:
    """A subscriber and a client written with pyzmq and json alone (docs/integrator.md)."""

    def __init__(self, home: Home) -> None:
        self.context = zmq.Context()
        self.sub = self.context.socket(zmq.SUB)
        self.sub.setsockopt(zmq.SUBSCRIBE, b"isp1/line1/st1/")
        self.sub.connect(f"tcp://127.0.0.1:{home.pub}")
        self.ctl = self.context.socket(zmq.DEALER)
        self.ctl.linger = 0
        self.ctl.connect(f"tcp://127.0.0.1:{home.ctl}")
        self.session = None
        self.rid = 0
        self.heard: dict[str, list[bytes]] = {}

    def ask(self, timeout_s: float = 10.0, **command) -> tuple[dict, list[bytes]]:
        self.rid += 1
        if self.session:
            command["session"] = self.session
        self.ctl.send(json.dumps({"rid": str(self.rid), **command}).encode())
        assert self.ctl.poll(timeout_s * 1000), f"no answer to {command}"
        head, *rest = self.ctl.recv_multipart()
        return json.loads(head), rest

    def hello(self) -> dict:
        answer, _ = self.ask(30, cmd="HELLO", client="ear")
        self.session = answer["session"]
        return answer

    def listen(self, until, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not until() and time.monotonic() < end:
            if self.sub.poll(100):
                topic, body = self.sub.recv_multipart()
                self.heard.setdefault(topic.decode().split("/")[3], []).append(body)

    def fetch(self, stream: str, epoch: str) -> list[bytes]:
        found: list[bytes] = []
        while True:
            page, bodies = self.ask(
                cmd="FETCH", stream=stream, epoch=epoch, from_seq=len(found) + 1, max=50
            )
            found += bodies
            if page["end"]:
                return found

    def close(self) -> None:
        self.context.destroy(0)


def ledger_bodies(path: Path) -> list[bytes]:
    """Every stored body that looks like a result, straight from the SQLite file."""
    import sqlite3

    found = {}
    with sqlite3.connect(path) as rows:
        for (table,) in rows.execute("select name from sqlite_master where type='table'"):
            for row in rows.execute(f'select * from "{table}"'):
                for cell in row:
                    data = cell.encode() if isinstance(cell, str) else cell
                    if isinstance(data, bytes) and b'"stream":"result"' in data:
                        found[json.loads(data)["seq"]] = data
    return [found[seq] for seq in sorted(found)]


def test_a_bare_client_sees_every_verdict_and_bus_ledger_and_fetch_agree(home):
    parts_folder(home.folder / "in", 40)
    process = home.start("run", "--source", "in", "--recipe", "disc", "--fps", "40")
    ear = Ear(home)
    try:
        hello = ear.hello()
        # A late subscriber may miss the first: FETCH has them, and what was heard must be the same.
        ear.listen(lambda: any(json.loads(b)["seq"] == 40 for b in ear.heard.get("result", [])))
        fetched = ear.fetch("result", hello["epoch"])
        status = json.loads(ear.heard["status"][-1])
        words = ear.heard.get("desc", [])
    finally:
        ear.close()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    heard = ear.heard["result"]
    assert [json.loads(b)["seq"] for b in fetched] == list(range(1, 41))
    assert heard == fetched[-len(heard) :]
    assert ledger_bodies(home.folder / "var" / "ledger.db") == fetched
    assert status["proto"] == "isp/1" and status["last_seq"]["result"] >= 20
    assert all(json.loads(b)["sentence"] for b in words)
    assert "parts │ 40" in out


def test_two_runs_and_a_replay_give_the_same_scores_to_the_last_bit(home, figure):
    parts_folder(home.folder / "in", 12)
    scores = []
    record = {"STATION_RECORD__ENABLED": "true", "STATION_RECORD__EVERY_OK": "1"}
    for run in ("a", "b"):
        path = home.folder / f"{run}.db"
        asked = ("run", "--source", "in", "--recipe", "disc", "--ledger", path)
        done = home.run(*asked, **(record if run == "b" else {}))
        assert done.returncode == 0, done.stderr
        rows = [json.loads(b) for b in ledger_bodies(path)]
        scores.append([(r["part_id"], r["verdict"], r["score"]) for r in rows])
    assert len(scores[0]) == 12 and scores[0] == scores[1]
    done = home.run("replay", "var/recordings", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified: 12 parts, 0 differ" in done.stdout
    text = "12 parts twice with the shipped engine, and replayed from the recording of one run"
    figure("P7", f"{text}: verdicts and scores equal to the last bit")


def test_sigterm_in_mid_run_exits_0_soon_and_every_part_has_a_verdict(home):
    parts_folder(home.folder / "in", 8)
    process = home.start("run", "--source", "in", "--recipe", "disc", "--loop")
    ear = Ear(home)
    try:
        ear.hello()
        ear.listen(lambda: len(ear.heard.get("result", [])) > 10)
    finally:
        ear.close()
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    took = time.monotonic() - start
    print(f"SIGTERM to exit: {took:.2f} s")
    assert process.returncode == 0, err
    assert took < 6  # 2 s on a machine of its own
    from station.ledger import Ledger

    ledger = Ledger(home.folder / "var" / "ledger.db", line="line1", station="st1")
    assert ledger.recovered == ()
    ledger.close()


def test_a_second_signal_stops_at_once(home):
    parts_folder(home.folder / "in", 4)
    process = home.start("run", "--source", "in", "--recipe", "disc", "--loop")
    ear = Ear(home)
    ear.hello()
    ear.close()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode in (0, 1)


def test_the_first_heartbeat_comes_within_2_s_and_ready_within_30_s(home, figure):
    """P12."""
    parts_folder(home.folder / "in", 4)
    ear = Ear(home)
    start = time.monotonic()
    process = home.start("run", "--source", "in", "--recipe", "disc", "--loop")
    try:
        ear.listen(lambda: ear.heard.get("status"))
        first = time.monotonic() - start
        ear.listen(lambda: json.loads(ear.heard["status"][-1])["ready"])
        ready = time.monotonic() - start
    finally:
        ear.close()
        process.terminate()
        process.communicate(timeout=20)
    figure("P12", f"first heartbeat {first:.2f} s, READY {ready:.2f} s")
    # Half of it is importing numpy, OpenCV and pydantic: on a machine that is busy with other
    # things (this session's load average above the number of cores) only READY can be held.
    assert first < (8 if crowded() else 2) and ready < 30


def test_replay_gives_the_same_table_and_leaves_the_ledger_alone(home):
    parts_folder(home.folder / "in", 10)
    done = home.run("replay", "in", "--recipe", "disc")
    assert done.returncode == 0, done.stderr
    assert "parts │ 10" in done.stdout, done.stdout + done.stderr
    assert not (home.folder / "var" / "ledger.db").exists()


def test_tail_waits_for_the_station_and_prints_every_verdict(home):
    parts_folder(home.folder / "in", 6)
    tail = home.start("tail", "--from-seq", "1", "--count", "6")
    done = home.run("run", "--source", "in", "--recipe", "disc", "--fps", "8")
    out, err = tail.communicate(timeout=30)
    assert done.returncode == 0 and tail.returncode == 0, err
    assert [line for line in out.splitlines() if " p00" in line and "score" in line]


def test_without_a_recipe_the_enroll_command_is_printed(home):
    parts_folder(home.folder / "in", 3)
    done = home.run("run", "--source", "in")
    assert done.returncode == 0, done.stderr
    assert "station enroll --recipe NAME --normals in" in done.stderr
    assert "UNDECIDED │ 3" in done.stdout and "reason recipe │ 3" in done.stdout


# -- bad input: one sentence, its exit code --------------------------------------------------------


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("station: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("run", "--camera", "0"), 4, "no camera 0"),
        (("run", "--source", "nope"), 4, "no such folder"),
        (("run", "--source", "empty"), 4, "no pictures in it"),
        (("run", "--source", "in", "--recipe", "nope"), 8, "no recipe 'nope'"),
        (("run", "--source", "in", "--bundle", "flipped"), 5, "weights.safetensors"),
        (("run", "--source", "in", "--config", "typo.toml"), 3, "typo.toml, line 2"),
        (("run", "--source", "in", "--camera", "0"), 2, "not both"),
        (("enroll", "--recipe", "x"), 2, "--normals"),
        (("enroll", "--recipe", "x", "--normals", "in", "--tiles", "two"), 2, "ROWSxCOLS"),
        (("replay", "nope"), 4, "no such folder"),
    ],
)
def test_bad_input_is_one_sentence_and_its_exit_code(home, args, code, says):
    parts_folder(home.folder / "in", 2)
    (home.folder / "empty").mkdir()
    (home.folder / "typo.toml").write_text("[engine]\nbundel = 'nano'\n")
    if "flipped" in args:
        shutil.copytree(NANO, home.folder / "flipped")
        weights = home.folder / "flipped" / "weights.safetensors"
        weights.chmod(0o644)
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(bytes(data))
    done = home.run(*args)
    assert done.returncode == code, done.stderr
    assert says in sentence(done)


def test_a_port_in_use_is_exit_9(home):
    parts_folder(home.folder / "in", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", home.ctl))
        taken.listen()
        done = home.run("run", "--source", "in", "--recipe", "disc")
    assert done.returncode == 9, done.stderr
    assert str(home.ctl) in sentence(done)


def test_a_second_station_on_the_same_ledger_is_exit_9(home):
    parts_folder(home.folder / "in", 2)
    first = home.start("run", "--source", "in", "--recipe", "disc", "--loop")
    ear = Ear(home)
    ear.hello()
    ear.close()
    other = {
        "STATION_BUS__PUB_PORT": str(free_port()),
        "STATION_BUS__CTL_PORT": str(free_port()),
    }
    done = home.run("run", "--source", "in", "--recipe", "disc", **other)
    first.terminate()
    first.communicate(timeout=20)
    assert done.returncode == 9, done.stderr


def test_a_gguf_that_is_none_runs_on_with_the_template_and_says_so(home):
    parts_folder(home.folder / "in", 6)
    (home.folder / "bad.gguf").write_text("I am not a model")
    done = home.run(
        "run", "--source", "in",
        STATION_DESCRIBE__BACKEND="llm", STATION_DESCRIBE__MODEL="bad.gguf",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bad.gguf" in done.stderr and "template" in done.stderr
    assert "parts │ 6" in done.stdout


def test_sighup_re_reads_the_configuration_and_says_so(home):
    parts_folder(home.folder / "in", 4)
    process = home.start("run", "--source", "in", "--recipe", "disc", "--loop", "--fps", "5")
    ear = Ear(home)
    try:
        ear.hello()
        ear.listen(lambda: ear.heard.get("result"))
        process.send_signal(signal.SIGHUP)
        ear.listen(lambda: any(b'"reloaded"' in b for b in ear.heard.get("event", [])), 10)
        (home.folder / "station.toml").write_text("[bus]\nnonsense = 1\n")
        process.send_signal(signal.SIGHUP)
        ear.listen(lambda: any(b"nonsense" in b for b in ear.heard.get("event", [])), 10)
        events = b"".join(ear.heard.get("event", []))
        assert b'"reloaded"' in events and b"unknown key 'bus.nonsense'" in events
        assert process.poll() is None
    finally:
        ear.close()
        process.terminate()
        process.communicate(timeout=20)


def test_systemd_is_told_ready_watchdog_and_stopping(home, tmp_path):
    parts_folder(home.folder / "in", 4)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(90)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "5000000"}
        process = home.start("run", "--source", "in", "--recipe", "disc", "--loop", **env)
        heard = []
        while not any(b"WATCHDOG=1" in m for m in heard):
            heard.append(systemd.recv(4096))
        process.terminate()
        while not any(b"STOPPING=1" in m for m in heard):
            heard.append(systemd.recv(4096))
        process.communicate(timeout=20)
    assert any(m.startswith(b"READY=1") for m in heard)


def test_a_log_that_nobody_reads_any_more_does_not_stop_the_station(home):
    parts_folder(home.folder / "in", 12)
    for number in range(6):
        (home.folder / "in" / f"bad{number}.jpg").write_text("not a picture: one log line each")
    process = home.start("run", "--source", "in", "--recipe", "disc")
    process.stderr.close()
    process.stdout.close()
    process.wait(120)
    rows = [json.loads(b) for b in ledger_bodies(home.folder / "var" / "ledger.db")]
    assert len(rows) == 18
    assert {r["reason"] for r in rows} <= {"camera", "score", "implausible_frame"}
