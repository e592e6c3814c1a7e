"""The simulated PLC over ISP/1: a DEALER that pairs by trigger id."""

import time

import zmq

from engines.errors import StationError
from station.address import connect
from station.client import Client, NoAnswer, Refused, apply_identity
from station.gateways.link_io import StationAddress
from station.keys import load_identity
from station.schema import Result, hex64
from station.schema_ctl import Kind, Reply
from station.simplc_drive import Answer, State
from station.simplc_script import Fault

HELLO_S = 0.5
_ANSWERED = frozenset({Kind.BUSY, Kind.NOT_READY, Kind.DUPLICATE, Kind.HELLO_FIRST})


class IspDriver:
    """Trigger ids are `prefix` (32 bits) above the PLC's own number."""

    def __init__(
        self, address: StationAddress, *, prefix: int, deadline_ms: int, margin_ms: int
    ) -> None:
        self._address, self._prefix = address, prefix
        self._deadline_ms = deadline_ms
        self._wait_s = (deadline_ms + margin_ms) / 1000
        self._client = self._connect()

    def _connect(self) -> Client:
        at = self._address
        return Client(at.ctl, keys=at.keys, name=at.client, timeout_s=HELLO_S)

    def open(self, timeout_s: float) -> None:
        """See Driver."""
        end = time.monotonic() + timeout_s
        why = "it does not answer"
        while time.monotonic() < end:
            try:
                status = self._client.status()
                if status.ready:
                    return
                why = f"it is not ready: {', '.join(status.faults) or status.mode}"
            except (NoAnswer, Refused) as error:
                why = str(error)
            time.sleep(0.05)
        raise StationError(
            f"the station at {self._address.ctl} was not READY within {timeout_s:g} s ({why}); "
            "see `station doctor`"
        )

    def close(self) -> None:
        """See Driver."""
        self._client.close()

    def inspect(self, trigger: int, part_id: str, fault: Fault | None = None) -> list[Answer]:
        """See Driver."""
        trigger_id = hex64(self._prefix << 32 | trigger)
        match fault:
            case Fault.BURST:
                return self._burst(trigger_id, part_id)
            case Fault.VANISH:
                return self._vanish(trigger_id, part_id)
            case Fault.NOISE:
                self._noise()
            case Fault.REPEAT:
                first = self._part(trigger_id, part_id)
                return [first, self._part(trigger_id, part_id)]
        return [self._part(trigger_id, part_id)]

    def _part(self, trigger_id: str, part_id: str) -> Answer:
        begun = time.monotonic()
        try:
            rid = self._client.trigger_start(trigger_id, part_id, self._deadline_ms)
        except (NoAnswer, Refused) as error:
            reason = error.reply.reply if isinstance(error, Refused) else "no_station"
            return Answer(State.MISSING, trigger_id, reason=reason, accepted=False)
        return self._collect({rid: trigger_id}, begun)[trigger_id]

    def _collect(self, rids: dict[str, str], begun: float) -> dict[str, Answer]:
        """Wait for the last word on each trigger; missing ones get MISSING."""
        done: dict[str, Answer] = {}
        accepted: set[str] = set()
        for item in self._client.answers(self._wait_s):
            ms = (time.monotonic() - begun) * 1000
            if isinstance(item, Result):
                done[item.trigger_id] = _verdict(item, ms)
            elif item.rid in rids:
                self._reply(item, rids[item.rid], done, accepted, ms)
            if all(trigger_id in done for trigger_id in rids.values()):
                break
        for trigger_id in rids.values():
            done.setdefault(
                trigger_id,
                Answer(
                    State.MISSING,
                    trigger_id,
                    reason="no_answer",
                    accepted=trigger_id in accepted,
                    ms=self._wait_s * 1000,
                ),
            )
        return done

    def _reply(
        self, reply: Reply, trigger_id: str, done: dict[str, Answer], accepted: set[str], ms: float
    ) -> None:
        if reply.reply is Kind.ACCEPTED:
            accepted.add(trigger_id)
            return
        if reply.reply is Kind.HELLO_FIRST:
            self._client.session = None  # the station was restarted: HELLO before the next part
        state = State.REFUSED if reply.reply in _ANSWERED else State.MISSING
        done[trigger_id] = Answer(state, trigger_id, reason=str(reply.reply), accepted=False, ms=ms)

    def _burst(self, trigger_id: str, part_id: str) -> list[Answer]:
        """A second part (id with the top bit turned) before the first is answered."""
        other = hex64(int(trigger_id, 16) ^ 1 << 63)
        begun = time.monotonic()
        try:
            rids = {
                self._client.trigger_start(which, name, self._deadline_ms): which
                for which, name in ((trigger_id, part_id), (other, f"{part_id}-burst"))
            }
        except (NoAnswer, Refused):
            return [Answer(State.MISSING, trigger_id, reason="no_station", accepted=False)]
        answers = self._collect(rids, begun)
        return [answers[trigger_id], answers[other]]

    def _vanish(self, trigger_id: str, part_id: str) -> list[Answer]:
        """Die after the trigger and come back as a new session that asks for the same id."""
        try:
            self._client.trigger_start(trigger_id, part_id, self._deadline_ms)
        except (NoAnswer, Refused):
            return [Answer(State.MISSING, trigger_id, reason="no_station", accepted=False)]
        time.sleep(0.02)  # let it leave: LINGER is 0
        self._client.close()
        self._client = self._connect()
        lost = Answer(State.MISSING, trigger_id, reason="vanished")
        again = self._part(trigger_id, part_id)
        while again.reason == Kind.BUSY:  # the part it left behind is still in flight
            time.sleep(0.01)
            again = self._part(trigger_id, part_id)
        return [lost, again]

    def _noise(self) -> None:
        """Bytes that are no command, from a socket of their own."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 100
            if self._address.keys is not None:
                apply_identity(socket, load_identity(self._address.keys))
            connect(socket, self._address.ctl)
            for data in (b"", b"\xff\x00", b"{}", b'{"cmd":"TRIGGER","rid":"x"}', b"[" * 500):
                socket.send(data)


def _verdict(result: Result, ms: float) -> Answer:
    return Answer(
        State.VERDICT,
        result.trigger_id,
        passed=result.accept,
        verdict=str(result.verdict),
        reason=str(result.reason),
        accepted=True,
        epoch=result.epoch,
        seq=result.seq,
        ms=ms,
    )
