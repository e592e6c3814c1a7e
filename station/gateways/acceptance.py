"""The acceptance rule: when a PLC that has read the registers may let a part pass.

A pure function of what was read and of the PLC's own clock, written the way a PLC would: every
condition must hold, and the answer to anything unexpected is "reject". docs/integrator.md gives
the same rule in words, Python and structured text; tests check it exhaustively against all-zero,
all-ones, stale and torn images.
"""

from collections.abc import Sequence
from enum import StrEnum

from station.gateways.registers import (
    BOND_KEY,
    INPUT_COUNT,
    MAP_VERSION,
    WORD,
    Bits,
    Input,
    Word,
    join,
)

# Five beats of the gateway (100 ms): a PLC that sees none is looking at a dead image.
STALE_MS = 500
# READY, FAULT and SIMULATED do not decide: a verdict given before a fault still stands.
_NEEDED = Bits.VALID | Bits.LINK | Bits.SYNCED
_DECIDING = _NEEDED | Bits.BUSY | 0xFF80


class Answer(StrEnum):
    """What the PLC does now."""

    PASS = "pass"
    REJECT = "reject"
    WAIT = "wait"  # no verdict on this part yet: reject when the PLC's own deadline is over


def intact(words: Sequence[int]) -> bool:
    """Whether the words are one image of this map: version, guard and bond words fit."""
    if len(words) != INPUT_COUNT or words[Input.MAP_VERSION] != MAP_VERSION:
        return False
    if words[Input.GUARD] != ~words[Input.HEARTBEAT] & WORD:
        return False
    key = words[Input.VERDICT] ^ BOND_KEY
    return (
        words[Input.BOND_HI] == words[Input.TRIGGER_ID_HI] ^ key
        and words[Input.BOND_LO] == words[Input.TRIGGER_ID_LO] ^ key
    )


def decide(words: Sequence[int], expected_id: int, heartbeat_age_ms: float) -> Answer:
    """What to do with the part whose 32-bit trigger id is `expected_id`.

    words: the 21 input registers of one read. heartbeat_age_ms: time since register HEARTBEAT
    last changed, on the PLC's clock. PASS needs an intact, fresh image with VALID, LINK and
    SYNCED set, BUSY clear, the id expected, and the verdict word OK. An image without a verdict
    on this part, or not intact, is WAIT (read again); the PLC's own deadline makes it a reject.
    """
    if not intact(words) or not 0 <= heartbeat_age_ms <= STALE_MS:
        return Answer.WAIT
    if words[Input.BITS] & _DECIDING != _NEEDED or expected_id == 0:
        return Answer.WAIT
    if join(words[Input.TRIGGER_ID_HI], words[Input.TRIGGER_ID_LO]) != expected_id:
        return Answer.WAIT
    return Answer.PASS if words[Input.VERDICT] == Word.OK else Answer.REJECT


def accept(words: Sequence[int], expected_id: int, heartbeat_age_ms: float) -> bool:
    """Whether the part may pass on this read alone; everything else rejects."""
    return decide(words, expected_id, heartbeat_age_ms) is Answer.PASS
