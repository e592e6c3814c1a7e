"""The handshake between a PLC and one station, as a state machine without sockets or clocks.

UNSYNCED --first write--> IDLE --trigger--> BUSY --verdict, refusal, loss--> VALID --ack--> IDLE
                                            BUSY --ack (the PLC gave up), then the answer--> IDLE

Every trigger word that changes is answered with VALID for its own id: a verdict, or REFUSED with
a reason. What arrives for any other id is dropped, so no part can get its neighbour's verdict.
The PLC's view of each state is `image()`; docs/integrator.md draws the diagram.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from station.gateways.registers import Bits, Code, Image, Outcome, PlcWords, Word


class Phase(StrEnum):
    """Where the one part in flight is."""

    UNSYNCED = "unsynced"
    IDLE = "idle"
    BUSY = "busy"
    VALID = "valid"


@dataclass(frozen=True, slots=True)
class Health:
    """What the gateway knows of the station. `link`: session open and heartbeats move."""

    link: bool = False
    ready: bool = False
    fault: bool = False


def refused(code: Code) -> Outcome:
    """An outcome without a verdict: the part is rejected."""
    return Outcome(word=Word.REFUSED, code=code)


@dataclass(slots=True)
class Handshake:
    """One PLC, one part in flight. `wait_s` bounds BUSY on the caller's monotonic clock."""

    wait_s: float
    phase: Phase = Phase.UNSYNCED
    health: Health = field(default_factory=Health)
    trigger_word: int = 0
    trigger_id: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    _until: float = 0.0
    _ack_id: int = 0  # as last written
    _given_up: bool = False  # acknowledged while BUSY: nobody waits for this part's answer

    def plc(self, words: PlcWords, now: float) -> int | None:
        """The PLC wrote its words; the 32-bit id to send to the station, if there is one.

        The first write after the gateway's start only tells which trigger word is already old: a
        PLC that writes cyclically must not re-trigger the part it had when the gateway died.
        An acknowledgement that comes while BUSY (the PLC's own deadline was over) is kept until
        the answer is there. Only a new one: the word may still hold the same id of an earlier use.
        """
        new_ack = words.ack_id != self._ack_id
        self._ack_id = words.ack_id
        if self.phase is Phase.UNSYNCED:
            self.trigger_word = words.trigger
            self.phase = Phase.IDLE
            return None
        if words.ack_id == self.trigger_id != 0:
            self._acknowledged(new=new_ack)
        if words.trigger == self.trigger_word:
            return None
        self.trigger_word = words.trigger
        return self._trigger(words.trigger_id, now)

    def _acknowledged(self, *, new: bool) -> None:
        if self.phase is Phase.VALID:
            self._idle()
        elif new:
            self._given_up = True

    def _trigger(self, trigger_id: int, now: float) -> int | None:
        refusal = self._refusal(trigger_id)
        self.trigger_id = trigger_id
        self._given_up = False
        if refusal is not None:
            self._valid(refused(refusal))
            return None
        self.phase = Phase.BUSY
        self.outcome = Outcome()
        self._until = now + self.wait_s
        return trigger_id

    def _refusal(self, trigger_id: int) -> Code | None:
        if trigger_id == 0:
            return Code.BAD_ID
        if not self._free():
            return Code.OVERRUN
        if not self.health.link:
            return Code.LINK_LOST
        return None if self.health.ready else Code.NOT_READY

    def _free(self) -> bool:
        """No part in flight. The refusal of id 0 cannot be acknowledged, so it never blocks."""
        return self.phase is Phase.IDLE or (self.phase is Phase.VALID and self.trigger_id == 0)

    def answer(self, trigger_id: int, outcome: Outcome, now: float) -> bool:
        """The station's last word on a part; False if it is not the part in flight, or too late.

        It looks at the clock itself: after a stopped process or a paused machine the answer is
        read from the socket before any `tick()`.
        """
        self.tick(now)
        if self.phase is not Phase.BUSY or trigger_id != self.trigger_id:
            return False
        self._valid(outcome)
        return True

    def station(self, health: Health) -> None:
        """News of the station. Losing it withdraws a verdict that was not yet acknowledged."""
        self.health = health
        if not health.link and self.phase in (Phase.BUSY, Phase.VALID):
            self._valid(refused(Code.LINK_LOST))

    def tick(self, now: float) -> None:
        """Time passes: a part the station never answered is refused."""
        if self.phase is Phase.BUSY and now > self._until:
            self._valid(refused(Code.NO_ANSWER))

    def _valid(self, outcome: Outcome) -> None:
        if self._given_up:
            self._idle()
            return
        self.phase = Phase.VALID
        self.outcome = outcome

    def _idle(self) -> None:
        self.phase = Phase.IDLE
        self.trigger_id = 0
        self.outcome = Outcome()
        self._given_up = False

    def image(self) -> Image:
        """What the PLC may read now."""
        return Image(self._bits(), self.trigger_id, self.trigger_word, self.outcome)

    def _bits(self) -> Bits:
        synced = self.phase is not Phase.UNSYNCED
        flags = {
            Bits.READY: self._free() and self.health.link and self.health.ready,
            Bits.BUSY: self.phase is Phase.BUSY,
            Bits.VALID: self.phase is Phase.VALID,
            Bits.SYNCED: synced,
            Bits.LINK: self.health.link,
            Bits.FAULT: self.health.fault or not self.health.link,
            Bits.SIMULATED: self.outcome.simulated,
        }
        bits = Bits(0)
        for bit, is_set in flags.items():
            bits |= bit if is_set else Bits(0)
        return bits
