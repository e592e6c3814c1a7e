"""Between a PLC's registers and the station: the handshake, its clock and its lock.

`read()` and `write()` are called by the Modbus server's thread, everything else by the station
link's. The heartbeat is moved by the link's thread alone: if that thread dies the registers stand
still and the PLC's rule rejects.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence

from station.gateways.handshake import Handshake, Health, refused
from station.gateways.registers import (
    Code,
    Image,
    Outcome,
    Word,
    encode,
    plc_words,
    reason_code,
)
from station.schema import Result, Verdict, hex64
from station.schema_ctl import Kind

BEAT_S = 0.1
# How much longer than the part's deadline BUSY may last: the way there and back, and one commit.
GRACE_S = 0.5
SendTrigger = Callable[[str, str, int], None]

REFUSED_CODES = {
    Kind.BUSY: Code.BUSY,
    Kind.NOT_READY: Code.NOT_READY,
    Kind.DUPLICATE: Code.DUPLICATE,
    Kind.DENIED: Code.DENIED,
}
_WORDS = {
    Verdict.OK: Word.OK,
    Verdict.NG: Word.NG,
    Verdict.UNDECIDED: Word.UNDECIDED,
    Verdict.ERROR: Word.ERROR,
}


def outcome(result: Result, *, allow_simulated: bool) -> Outcome:
    """A result as the PLC sees it. A late OK, or a simulated one that was not allowed, is none."""
    word, code = _WORDS[result.verdict], reason_code(result.reason)
    if result.late and word is Word.OK:
        word, code = Word.UNDECIDED, Code.LATE
    elif result.simulated and not allow_simulated and word is Word.OK:
        word, code = Word.UNDECIDED, Code.SIMULATED
    return Outcome(
        word=word,
        code=code,
        score=result.score,
        threshold=result.threshold,
        defects=result.region_count,
        part_ms=(result.t_done_us - result.t_trigger_us) // 1000,
        seq=result.seq,
        epoch=int(result.epoch, 16) >> 32,
        simulated=result.simulated,
    )


class Bridge:
    """One PLC and one station. `prefix` is the upper half of every 64-bit trigger id sent,
    `camera` what every part id begins with ("left/", or "" where the station has one camera).
    """

    def __init__(
        self,
        send: SendTrigger,
        *,
        deadline_ms: int,
        prefix: int | None = None,
        camera: str = "",
        allow_simulated: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefix = secrets.randbits(32) if prefix is None else prefix
        self.health = Health()
        self._send = send
        self._camera = camera
        self._deadline_ms = deadline_ms
        self._allow_simulated = allow_simulated
        self._clock = clock
        self._lock = threading.Lock()
        self._handshake = Handshake(wait_s=deadline_ms / 1000 + GRACE_S)
        self._beat = secrets.randbits(16)
        self._beat_at = clock()
        self._shown: Image | None = None
        self._words: tuple[int, ...] = ()
        self._show()

    def read(self) -> tuple[int, ...]:
        """The 21 input registers: always one image, never a mixture."""
        return self._words

    def write(self, holding: Sequence[int]) -> None:
        """The PLC's five holding registers after a write."""
        with self._lock:
            trigger_id = self._handshake.plc(plc_words(holding), self._clock())
            self._show()
        if trigger_id is not None:
            part_id = f"{self._camera}{trigger_id}"
            self._send(hex64(self.prefix << 32 | trigger_id), part_id, self._deadline_ms)

    def on_health(self, health: Health) -> None:
        """From the link: see LinkListener."""
        with self._lock:
            self.health = health
            self._handshake.station(health)
            self._show()

    def on_result(self, result: Result) -> None:
        """From the link: see LinkListener."""
        self._answer(result.trigger_id, outcome(result, allow_simulated=self._allow_simulated))

    def on_refusal(self, trigger_id: str, kind: Kind) -> None:
        """From the link: see LinkListener."""
        self._answer(trigger_id, refused(REFUSED_CODES.get(kind, Code.UNKNOWN)))

    def on_tick(self) -> None:
        """From the link: see LinkListener."""
        with self._lock:
            now = self._clock()
            self._handshake.tick(now)
            self._show(beat=now - self._beat_at >= BEAT_S)

    def _answer(self, trigger_id: str, answer: Outcome) -> None:
        number = int(trigger_id, 16)
        if number >> 32 != self.prefix:
            return
        with self._lock:
            self._handshake.answer(number & 0xFFFFFFFF, answer, self._clock())
            self._show()

    def _show(self, *, beat: bool = False) -> None:
        """Publish the image. Every change moves the heartbeat: no two images share a guard."""
        image = self._handshake.image()
        if image == self._shown and not beat:
            return
        self._shown = image
        self._beat = (self._beat + 1) & 0xFFFF
        self._beat_at = self._clock()
        self._words = encode(image, self._beat, self.prefix)
