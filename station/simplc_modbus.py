"""The simulated PLC over Modbus TCP: reads the map, applies the acceptance rule, acknowledges."""

import logging
import time
from typing import Any

from engines.errors import ConfigError, StationError
from station.gateways.acceptance import Answer as Rule
from station.gateways.acceptance import decide, intact
from station.gateways.registers import (
    INPUT_COUNT,
    Bits,
    Code,
    Input,
    PlcWords,
    Word,
    holding_words,
    join,
)
from station.schema import hex64
from station.simplc_drive import Answer, State
from station.simplc_script import Fault

POLL_S = 0.002


class ModbusDriver:
    """One connection; a lost one is opened again before the next part."""

    def __init__(self, host: str, port: int, *, deadline_ms: int, margin_ms: int) -> None:
        self._host, self._port = host, port
        self._wait_s = (deadline_ms + margin_ms) / 1000
        self._client: Any = None
        self._word = 0
        self._ack = 0
        self._beat: int | None = None
        self._beat_at = 0.0
        _client_class()

    def open(self, timeout_s: float) -> None:
        """See Driver."""
        end = time.monotonic() + timeout_s
        why = "no connection"
        while time.monotonic() < end:
            words = self._read()
            if words is not None and words[Input.BITS] & Bits.READY:
                return
            why = "no connection" if words is None else f"bits {words[Input.BITS]:#06x}"
            time.sleep(0.05)
        raise StationError(
            f"the Modbus gateway at {self._host}:{self._port} did not show READY within "
            f"{timeout_s:g} s ({why}); see docs/integrator.md"
        )

    def close(self) -> None:
        """See Driver."""
        self._drop()

    def inspect(self, trigger: int, part_id: str, fault: Fault | None = None) -> list[Answer]:
        """See Driver. The part id is the trigger's number: Modbus has no text."""
        match fault:
            case Fault.REPEAT:
                return [self._part(trigger), self._part(trigger)]
            case Fault.BURST:
                self._trigger(trigger)
                return [Answer(State.MISSING, reason="overrun"), self._part(trigger ^ 1 << 31)]
            case Fault.VANISH:
                self._trigger(trigger)
                self._drop()
                return [Answer(State.MISSING, reason="vanished"), self._again(trigger)]
            case Fault.NOISE:
                return [self._part(0), self._part(trigger)]
        return [self._part(trigger)]

    def _again(self, trigger: int) -> Answer:
        """The same id once the station is free of the part that was left behind."""
        end = time.monotonic() + self._wait_s
        while time.monotonic() < end:
            words = self._read()
            if words is not None and words[Input.BITS] & Bits.VALID:
                self._ack = join(words[Input.TRIGGER_ID_HI], words[Input.TRIGGER_ID_LO])
                self._write(self._ack)
            if words is not None and words[Input.BITS] & Bits.READY:
                break
            time.sleep(POLL_S)
        return self._part(trigger)

    def _part(self, trigger: int) -> Answer:
        begun = time.monotonic()
        if not self._trigger(trigger):
            return Answer(State.MISSING, reason="no_station")
        return self._await(trigger, begun)

    def _await(self, trigger: int, begun: float) -> Answer:
        while time.monotonic() - begun < self._wait_s:
            words = self._read()
            if words is None:
                time.sleep(POLL_S)
                continue
            rule = decide(words, trigger, (time.monotonic() - self._beat_at) * 1000)
            if rule is not Rule.WAIT or _refused(words, trigger):
                self._ack = trigger
                self._write(trigger)
                return _answer(words, rule, (time.monotonic() - begun) * 1000)
            time.sleep(POLL_S)
        return Answer(State.MISSING, reason="no_answer", ms=self._wait_s * 1000)

    def _trigger(self, trigger: int) -> bool:
        """Wait for READY (bounded by the part's own time) and write the trigger word."""
        end = time.monotonic() + self._wait_s
        while time.monotonic() < end:
            words = self._read()
            if words is not None and words[Input.BITS] & Bits.READY:
                break
            if words is not None and not words[Input.BITS] & Bits.BUSY:
                self._clear(words)
            time.sleep(POLL_S)
        else:
            return False
        self._word = (self._word + 1) & 0xFFFF
        return self._write(trigger)

    def _clear(self, words: list[int]) -> None:
        """Acknowledge what an earlier connection left behind, and synchronise a new gateway."""
        if words[Input.BITS] & Bits.VALID:
            self._ack = join(words[Input.TRIGGER_ID_HI], words[Input.TRIGGER_ID_LO])
        self._write(self._ack)

    def _read(self) -> list[int] | None:
        client = self._connected()
        if client is None:
            return None
        try:
            answer = client.read_input_registers(0, count=INPUT_COUNT)
        except _errors():
            self._drop()
            return None
        if answer.isError():
            return None
        words = list(answer.registers)
        if words[Input.HEARTBEAT] != self._beat:
            self._beat, self._beat_at = words[Input.HEARTBEAT], time.monotonic()
        return words

    def _write(self, trigger: int) -> bool:
        client = self._connected()
        if client is None:
            return False
        words = holding_words(PlcWords(self._word, trigger, self._ack))
        try:
            return not client.write_registers(0, list(words)).isError()
        except _errors():
            self._drop()
            return False

    def _connected(self) -> Any:
        """The connection; a new one first adopts the trigger word the gateway knows."""
        if self._client is not None:
            return self._client
        client = _client_class()(self._host, port=self._port, timeout=1, retries=0)
        if not client.connect():
            client.close()
            time.sleep(0.02)
            return None
        self._client = client
        words = self._read()
        if words is not None:
            self._word = words[Input.TRIGGER_ECHO]
            self._write(0)
        return self._client

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _refused(words: list[int], trigger: int) -> bool:
    """VALID for this id although the rule does not decide: the station is lost, or id 0."""
    return (
        intact(words)
        and bool(words[Input.BITS] & Bits.VALID)
        and join(words[Input.TRIGGER_ID_HI], words[Input.TRIGGER_ID_LO]) == trigger
    )


def _answer(words: list[int], rule: Rule, ms: float) -> Answer:
    word = words[Input.VERDICT]
    names = {int(known): known.name for known in Word}
    codes = {int(code): code.name.lower() for code in Code}
    prefix = join(words[Input.GATEWAY_HI], words[Input.GATEWAY_LO])
    number = join(words[Input.TRIGGER_ID_HI], words[Input.TRIGGER_ID_LO])
    refused = word in (Word.REFUSED, Word.NONE)
    return Answer(
        State.REFUSED if refused else State.VERDICT,
        hex64(prefix << 32 | number),
        passed=rule is Rule.PASS,
        verdict="" if refused else names.get(word, ""),
        reason=codes.get(words[Input.REASON], "unknown"),
        accepted=None if refused else True,
        epoch=f"{join(words[Input.EPOCH_HI], words[Input.EPOCH_LO]):08x}",
        seq=join(words[Input.SEQ_HI], words[Input.SEQ_LO]),
        ms=ms,
    )


def _client_class() -> Any:
    try:
        from pymodbus.client import ModbusTcpClient
    except ImportError as error:
        raise ConfigError(
            f"sim-plc over Modbus needs pymodbus 3.16 or newer ({error}): "
            "make install brings it, or pip install 'pymodbus>=3.16'"
        ) from None
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # lost connections are counted here
    return ModbusTcpClient


def _errors() -> tuple[type[Exception], ...]:
    from pymodbus.exceptions import ModbusException

    return (ModbusException, OSError)
