"""The Modbus register map: what a PLC reads (input registers) and writes (holding registers).

docs/integrator.md is the prose of this file and a test keeps both in
step. 32-bit numbers take two registers, high word first. One image is 21 registers and is read in
one request (the protocol allows 125). Nothing here knows sockets or time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from station.schema import Reason

# High byte "I", low byte the version: neither 0x0000 nor 0xFFFF, the two images of a dead device.
MAP_VERSION = 0x4901
INPUT_COUNT = 21
HOLDING_COUNT = 5
WORD = 0xFFFF
NO_NUMBER = 0xFFFF  # score, threshold: there is none
MAX_SCALED = 0xFFFE  # a scaled number saturates here
# Mixed into the bond words so that neither an all-zero nor an all-ones image satisfies them.
BOND_KEY = 0x36C9


class Input(IntEnum):
    """Addresses of the input registers (function code 4, zero-based)."""

    MAP_VERSION = 0
    HEARTBEAT = 1
    BITS = 2
    VERDICT = 3
    TRIGGER_ID_HI = 4
    TRIGGER_ID_LO = 5
    BOND_HI = 6
    BOND_LO = 7
    TRIGGER_ECHO = 8
    REASON = 9
    SCORE = 10
    THRESHOLD = 11
    DEFECTS = 12
    PART_MS = 13
    SEQ_HI = 14
    SEQ_LO = 15
    EPOCH_HI = 16
    EPOCH_LO = 17
    GATEWAY_HI = 18
    GATEWAY_LO = 19
    GUARD = 20


class Holding(IntEnum):
    """Addresses of the holding registers the PLC writes (function code 16, zero-based)."""

    TRIGGER = 0
    TRIGGER_ID_HI = 1
    TRIGGER_ID_LO = 2
    ACK_ID_HI = 3
    ACK_ID_LO = 4


class Bits(IntFlag):
    """Register 2. The upper eight bits are always 0."""

    READY = 1
    BUSY = 2
    VALID = 4
    SYNCED = 8
    LINK = 16
    FAULT = 32
    SIMULATED = 64


NO_BITS = Bits(0)


class Word(IntEnum):
    """The verdict word: any two differ in at least 8 of 16 bits; only OK lets a part pass."""

    NONE = 0x0000
    OK = 0x5A5A
    NG = 0x3C3C
    UNDECIDED = 0x6969
    ERROR = 0x0F0F
    REFUSED = 0x9696


class Code(IntEnum):
    """The reason register: 0 none, 1..99 the station's reasons, 100.. the gateway's own."""

    NONE = 0
    SCORE = 1
    DEADLINE = 2
    QUEUE_FULL = 3
    RECIPE = 4
    IMPLAUSIBLE_FRAME = 5
    CAMERA = 6
    STALE_FRAME = 7
    INFER = 8
    NOT_FINITE = 9
    RESTART = 10
    CONFIG = 11
    UNKNOWN = 99
    BUSY = 101
    NOT_READY = 102
    DUPLICATE = 103
    OVERRUN = 104
    BAD_ID = 105
    LINK_LOST = 106
    NO_ANSWER = 107
    LATE = 108
    SIMULATED = 109
    DENIED = 110


def reason_code(reason: str) -> Code:
    """The register's number for a reason of the station; UNKNOWN for one of a newer station."""
    return Code[reason.upper()] if reason in set(Reason) else Code.UNKNOWN


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of one finished trigger; `score` and `threshold` are None where unknown."""

    word: Word = Word.NONE
    code: Code = Code.NONE
    score: float | None = None
    threshold: float | None = None
    defects: int = 0
    part_ms: int = 0
    seq: int = 0
    epoch: int = 0
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """Everything the PLC sees but the heartbeat: one consistent state of the handshake."""

    bits: Bits = NO_BITS
    trigger_id: int = 0
    trigger_echo: int = 0
    outcome: Outcome = Outcome()


@dataclass(frozen=True, slots=True)
class PlcWords:
    """What the PLC has written, 16-bit words and 32-bit ids."""

    trigger: int = 0
    trigger_id: int = 0
    ack_id: int = 0


def scaled(value: float | None) -> int:
    """A score x 1000 as u16: below 0 is 0, above 65.534 is 65534, none or NaN is 65535."""
    if value is None or math.isnan(value):
        return NO_NUMBER
    thousandths = value * 1000
    if not thousandths < MAX_SCALED:  # +inf as well
        return MAX_SCALED
    return round(max(0.0, thousandths))


def saturated(value: int) -> int:
    """A count or a time as u16: anything above 65535 is 65535."""
    return max(0, min(value, WORD))


def split(value: int) -> tuple[int, int]:
    """The high and the low word of the low 32 bits of a number."""
    return (value >> 16) & WORD, value & WORD


def join(high: int, low: int) -> int:
    """A 32-bit number from its words."""
    return (high & WORD) << 16 | low & WORD


def encode(image: Image, heartbeat: int, gateway_id: int) -> tuple[int, ...]:
    """The 21 input registers of an image, guard and bond words included."""
    id_hi, id_lo = split(image.trigger_id)
    out = image.outcome
    beat = heartbeat & WORD
    words = {
        Input.MAP_VERSION: MAP_VERSION,
        Input.HEARTBEAT: beat,
        Input.BITS: int(image.bits),
        Input.VERDICT: int(out.word),
        Input.TRIGGER_ID_HI: id_hi,
        Input.TRIGGER_ID_LO: id_lo,
        Input.BOND_HI: id_hi ^ int(out.word) ^ BOND_KEY,
        Input.BOND_LO: id_lo ^ int(out.word) ^ BOND_KEY,
        Input.TRIGGER_ECHO: image.trigger_echo & WORD,
        Input.REASON: int(out.code),
        Input.SCORE: scaled(out.score),
        Input.THRESHOLD: scaled(out.threshold),
        Input.DEFECTS: saturated(out.defects),
        Input.PART_MS: saturated(out.part_ms),
        Input.SEQ_HI: split(out.seq)[0],
        Input.SEQ_LO: split(out.seq)[1],
        Input.EPOCH_HI: split(out.epoch)[0],
        Input.EPOCH_LO: split(out.epoch)[1],
        Input.GATEWAY_HI: split(gateway_id)[0],
        Input.GATEWAY_LO: split(gateway_id)[1],
        Input.GUARD: ~beat & WORD,
    }
    return tuple(words[address] for address in Input)


def plc_words(holding: Sequence[int]) -> PlcWords:
    """The PLC's words from the five holding registers."""
    return PlcWords(
        trigger=holding[Holding.TRIGGER],
        trigger_id=join(holding[Holding.TRIGGER_ID_HI], holding[Holding.TRIGGER_ID_LO]),
        ack_id=join(holding[Holding.ACK_ID_HI], holding[Holding.ACK_ID_LO]),
    )


def holding_words(words: PlcWords) -> tuple[int, ...]:
    """The five holding registers a PLC writes in one request."""
    return (
        words.trigger & WORD,
        *split(words.trigger_id),
        *split(words.ack_id),
    )
