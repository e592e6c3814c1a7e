"""A fast station for the tests of ledger and bus: real ledger, real bus, an engine that answers
at once (or as late, or never, as a test wants). A test double: it lives only here."""

import json
import os
import threading
import time

import zmq

from station.bus import Bus, BusConfig
from station.ledger import Duplicate, Ledger
from station.schema import Opening, Reason, ResultDraft, StatusFacts, Verdict, new_id

LOCAL = ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")


def opening(trigger_id=None, **changes):
    """A trigger as the daemon opens it."""
    fields = {
        "trigger_id": trigger_id or new_id(),
        "received_ns": time.monotonic_ns(),
        "deadline_ms": 60_000,  # a busy test machine must not decide a verdict
        "t_trigger_us": time.time_ns() // 1000,
        "threshold": 0.5,
        "recipe": "test",
    }
    return Opening(**(fields | changes))


def draft(trigger_id, score=0.1, **changes):
    """OK or NG by the score."""
    ok = score <= 0.5
    fields = {
        "trigger_id": trigger_id,
        "verdict": Verdict.OK if ok else Verdict.NG,
        "reason": Reason.SCORE,
        "score": score,
        "threshold": 0.5,
    }
    return ResultDraft(**(fields | changes))


def subscriber(address, *topics):
    """A bare SUB socket whose subscriptions are known to be active: a status has come through
    the one that was sent last."""
    sub = zmq.Context.instance().socket(zmq.SUB)
    sub.linger = 0
    for name in topics:
        sub.subscribe(name)
    station = b"/".join(topics[0].split(b"/")[:3]) + b"/"
    sub.subscribe(station + b"status/")
    sub.connect(address)
    sub.recv_multipart()
    sub.unsubscribe(station + b"status/")
    return sub


def next_of(sub, stream):
    """The next body of a stream as bytes, passing over others."""
    while True:
        data = sub.recv_multipart()[1]
        if json.loads(data)["stream"] == stream:
            return data


class Jitter:
    """How late this machine wakes a thread, sampled while a test runs: what a bound in
    milliseconds must allow for where other work holds the cores. `p99_ms` after the block."""

    def __enter__(self):
        self.p99_ms, self._late, self._stop = 0.0, [], threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        while not self._stop.is_set():
            begin = time.perf_counter()
            time.sleep(0.001)
            self._late.append((time.perf_counter() - begin) * 1e3 - 1.0)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.p99_ms = sorted(self._late)[int(len(self._late) * 0.99)]


class Disk:
    """What this disk takes to make 20 KiB durable (about one commit), sampled a hundred times a
    second while a test runs. `p99_ms` after the block."""

    def __init__(self, folder):
        self.p99_ms, self._folder = 0.0, folder

    def __enter__(self):
        self._took, self._stop = [], threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        block = os.urandom(20 * 1024)
        with (self._folder / "fsync").open("wb") as file:
            while not self._stop.wait(0.01):
                file.write(block)
                file.flush()
                begin = time.perf_counter()
                os.fdatasync(file.fileno())
                self._took.append((time.perf_counter() - begin) * 1e3)

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.p99_ms = sorted(self._took)[int(len(self._took) * 0.99)]


class FastStation:
    """Ledger, bus and an instant engine. `infer_s` delays the answer, `in_flight` bounds parts."""

    def __init__(
        self,
        folder,
        *,
        line="line1",
        station="st1",
        infer_s=0.0,
        in_flight=1000,
        pub=LOCAL[0],
        ctl=LOCAL[1],
        **config,
    ):
        self.ledger = Ledger(folder / f"{station}.db", line=line, station=station)
        self.bus = Bus(BusConfig(line, station, pub, ctl, **config), self.ledger, self)
        self.infer_s, self.in_flight = infer_s, in_flight
        self.hb, self.open, self.ready = 0, 0, True
        self.triggers, self.admins, self.pictures = [], [], {}
        self._lock = threading.Lock()
        self.bus.start()

    def on_trigger(self, command, reply):
        self.triggers.append(command.trigger_id)
        if not self.ready:
            reply.not_ready("test")
            return
        with self._lock:
            if self.open >= self.in_flight:
                reply.busy()
                return
            self.open += 1
        part = opening(
            command.trigger_id,
            part_id=command.part_id,
            session=reply.session,
            received_ns=reply.received_ns,
            deadline_ms=command.deadline_ms or 60_000,
        )
        self.ledger.open_part(part).add_done_callback(lambda done: self._opened(done, reply))

    def _opened(self, done, reply):
        if done.exception() is not None:
            reply.not_ready(str(done.exception()))
            self._closed()
            return
        part = done.result()
        if isinstance(part, Duplicate):
            reply.duplicate()
            self._closed()
            return
        reply.accepted(part.part_id, part.attempt)
        if self.infer_s:
            threading.Timer(self.infer_s, self._judge, (part,)).start()
        else:
            self._judge(part)

    def _judge(self, part):
        score = 0.9 if part.part_id.startswith("bad") else 0.1
        committed = self.ledger.commit_result(draft(part.trigger_id, score))
        committed.add_done_callback(lambda _: self._closed())

    def _closed(self):
        with self._lock:
            self.open -= 1

    def status(self):
        self.hb += 1
        return StatusFacts(
            ready=self.ready,
            busy=self.open > 0,
            mode="triggered",
            hb=self.hb,
            open_triggers=self.open,
        )

    def image(self, ref):
        return self.pictures.get(ref)

    def on_admin(self, command, reply):
        self.admins.append(command)
        reply.done(ms=1)

    def stop(self):
        self.bus.stop()
        self.ledger.close()


class Raw:
    def __init__(self, address, kind=zmq.DEALER):
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger = 0
        self.socket.connect(address)
        self.session, self.count = None, 0

    def __enter__(self):
        self.session = self.ask(cmd="HELLO", client="raw")[0]["session"]
        return self

    def __exit__(self, *_):
        self.context.destroy(0)

    def send(self, **fields):
        self.count += 1
        request = {"rid": str(self.count), "session": self.session} | fields
        self.socket.send(json.dumps({k: v for k, v in request.items() if v is not None}).encode())

    def receive(self, timeout_s=15.0):
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        frames = self.socket.recv_multipart()
        return [json.loads(frames[0]), *frames[1:]]

    def ask(self, **fields):
        self.send(**fields)
        return self.receive()
