"""The PLC handshake: every trigger is answered for its own id, and doubt is never OK."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from station.gateways.acceptance import accept
from station.gateways.handshake import Handshake, Health, Phase
from station.gateways.registers import Bits, Code, Outcome, PlcWords, Word, encode

UP = Health(link=True, ready=True)
OK = Outcome(word=Word.OK, code=Code.SCORE, score=0.1)


def synced(health=UP):
    shake = Handshake(wait_s=1.0)
    shake.station(health)
    shake.plc(PlcWords(), 0.0)
    return shake


def shown(shake):
    image = shake.image()
    return image.bits, image.trigger_id, image.outcome.word, image.outcome.code


def test_one_part_from_ready_to_acknowledged():
    shake = synced()
    assert shake.image().bits & Bits.READY
    assert shake.plc(PlcWords(1, 42), 0.0) == 42
    assert shown(shake)[0] & Bits.BUSY and not shown(shake)[0] & Bits.READY
    assert shake.image().trigger_echo == 1
    assert shake.answer(42, OK, 1.0)
    assert accept(encode(shake.image(), 5, 1), 42, 0)
    shake.plc(PlcWords(1, 42, ack_id=42), 0.1)
    assert shake.phase is Phase.IDLE and shown(shake)[2] is Word.NONE


def test_the_first_write_after_a_start_triggers_nothing():
    shake = Handshake(wait_s=1.0)
    shake.station(UP)
    assert not shake.image().bits & (Bits.READY | Bits.SYNCED)
    assert shake.plc(PlcWords(9, 42), 0.0) is None
    assert shake.plc(PlcWords(9, 42), 0.0) is None  # a cyclic writer
    assert shake.plc(PlcWords(10, 43), 0.0) == 43


def test_one_write_may_acknowledge_and_trigger():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    shake.answer(1, OK, 0.1)
    assert shake.plc(PlcWords(2, 2, ack_id=1), 0.1) == 2


def test_a_trigger_before_the_acknowledgement_is_refused_as_overrun():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    shake.answer(1, OK, 0.1)
    assert shake.plc(PlcWords(2, 2), 0.1) is None
    assert shown(shake)[1:] == (2, Word.REFUSED, Code.OVERRUN)


def test_a_trigger_while_busy_is_refused_and_the_first_answer_is_dropped():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    assert shake.plc(PlcWords(2, 2), 0.1) is None
    assert not shake.answer(1, OK, 0.1) and not shake.answer(2, OK, 0.1)
    assert shown(shake)[1:] == (2, Word.REFUSED, Code.OVERRUN)


def given_up(now=0.5):
    """Part 42 in flight, and acknowledged by a PLC whose own deadline was over."""
    shake = synced()
    shake.plc(PlcWords(1, 42), 0.0)
    shake.plc(PlcWords(1, 42, ack_id=42), now)
    return shake


def test_a_part_that_is_acknowledged_while_busy_never_blocks_the_line():
    shake = given_up()
    assert shown(shake) == (Bits.BUSY | Bits.SYNCED | Bits.LINK, 42, Word.NONE, Code.NONE)
    assert shake.answer(42, OK, 0.6)
    assert shown(shake) == (Bits.READY | Bits.SYNCED | Bits.LINK, 0, Word.NONE, Code.NONE)
    shake = given_up()
    shake.tick(1.1)
    assert shake.phase is Phase.IDLE
    shake = given_up()
    shake.station(Health())
    assert shake.phase is Phase.IDLE


def test_the_next_part_after_a_given_up_one_is_answered():
    shake = given_up()
    shake.answer(42, OK, 0.6)
    shake.plc(PlcWords(2, 43, ack_id=42), 0.7)
    assert shake.answer(43, OK, 0.8)
    assert accept(encode(shake.image(), 5, 1), 43, 0)
    shake = given_up()
    shake.plc(PlcWords(2, 43, ack_id=42), 0.6)  # before the answer: an overrun as ever
    assert shown(shake)[1:] == (43, Word.REFUSED, Code.OVERRUN)


def test_an_ack_word_that_is_old_gives_no_part_up():
    """The id of the part before last is used again and its ack still stands in the register."""
    shake = synced()
    shake.plc(PlcWords(1, 42, ack_id=42), 0.0)
    shake.plc(PlcWords(1, 42, ack_id=42), 0.1)  # a cyclic writer
    shake.answer(42, OK, 0.2)
    assert shown(shake)[1:3] == (42, Word.OK)
    shake = Handshake(wait_s=1.0)
    shake.station(UP)
    shake.plc(PlcWords(0, 0, ack_id=7), 0.0)  # a gateway that comes back
    shake.plc(PlcWords(1, 7, ack_id=7), 0.0)
    shake.plc(PlcWords(1, 7, ack_id=7), 0.1)
    shake.answer(7, OK, 0.2)
    assert shown(shake)[1:3] == (7, Word.OK)


def test_an_ack_of_another_part_while_busy_changes_nothing():
    shake = synced()
    shake.plc(PlcWords(1, 42), 0.0)
    shake.plc(PlcWords(1, 42, ack_id=41), 0.1)
    shake.answer(42, OK, 0.2)
    assert shown(shake)[1:3] == (42, Word.OK)


def test_id_zero_is_refused_and_does_not_block_the_line():
    shake = synced()
    assert shake.plc(PlcWords(1, 0), 0.0) is None
    assert shown(shake)[1:] == (0, Word.REFUSED, Code.BAD_ID)
    assert shake.image().bits & Bits.READY
    assert shake.plc(PlcWords(2, 5), 0.0) == 5


def test_losing_the_station_withdraws_an_unread_ok():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    shake.answer(1, OK, 0.1)
    shake.station(Health())
    assert shown(shake)[2:] == (Word.REFUSED, Code.LINK_LOST)
    shake.station(UP)  # and it does not come back
    assert shown(shake)[2:] == (Word.REFUSED, Code.LINK_LOST)


def test_a_station_that_is_only_not_ready_takes_no_verdict_away():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    for health in (Health(link=True), UP):
        shake.station(health)
        assert shake.phase is Phase.BUSY
    shake.answer(1, OK, 0.1)
    shake.station(Health(link=True))
    assert shown(shake)[2:] == (Word.OK, Code.SCORE)
    idle = synced()
    idle.station(Health())
    assert idle.phase is Phase.IDLE


def test_losing_the_station_ends_a_part_in_flight():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    shake.station(Health())
    assert not shake.answer(1, OK, 0.1)
    assert shown(shake)[1:] == (1, Word.REFUSED, Code.LINK_LOST)


def test_no_answer_in_time_is_a_refusal_and_a_later_one_is_dropped():
    shake = synced()
    shake.plc(PlcWords(1, 1), 0.0)
    shake.tick(1.0)
    assert shake.phase is Phase.BUSY
    shake.tick(1.01)
    assert shown(shake)[1:] == (1, Word.REFUSED, Code.NO_ANSWER)
    assert not shake.answer(1, OK, 0.1)


def test_an_answer_after_the_time_limit_is_refused_without_any_tick():
    """A stopped process reads the answer from its socket before its clock has ticked."""
    for late, taken in ((1.0, True), (1.01, False), (60.0, False)):
        shake = synced()
        shake.plc(PlcWords(1, 42), 0.0)
        assert shake.answer(42, OK, late) is taken
        assert accept(encode(shake.image(), 5, 1), 42, 0) is taken
        assert shown(shake)[3] is (Code.SCORE if taken else Code.NO_ANSWER)


def test_triggers_without_a_ready_station_are_refused_with_the_cause():
    for health, code in ((Health(), Code.LINK_LOST), (Health(link=True), Code.NOT_READY)):
        shake = synced(health)
        assert shake.plc(PlcWords(1, 1), 0.0) is None
        assert shown(shake)[3] is code


def test_the_fault_bit_tells_a_fault_or_a_lost_link():
    for link, fault in ((True, False), (True, True), (False, False), (False, True)):
        bits = synced(Health(link=link, ready=True, fault=fault)).image().bits
        assert bool(bits & Bits.FAULT) is (fault or not link)


class AnyHandshake(RuleBasedStateMachine):
    """Whatever PLC, station and clock do in whatever order."""

    def __init__(self):
        super().__init__()
        self.shake = Handshake(wait_s=1.0)
        self.words = PlcWords()
        self.now = 0.0
        self.truth = {}  # id -> the verdict word the station gave while that id was asked for
        self.asked, self.asked_at = None, 0.0

    @rule(
        step=st.integers(0, 1),
        trigger_id=st.integers(0, 4),
        ack=st.integers(0, 4),
        dt=st.floats(0, 2),
    )
    def plc_writes(self, step, trigger_id, ack, dt):
        self.now += dt
        self.words = PlcWords((self.words.trigger + step) & 0xFFFF, trigger_id, ack)
        asked = self.shake.plc(self.words, self.now)
        if step and self.shake.trigger_id == trigger_id:
            self.truth.pop(trigger_id, None)  # a new part under an old id starts without verdict
        if asked is not None:
            assert asked == trigger_id and self.shake.health == UP
            self.asked, self.asked_at = asked, self.now

    @rule(trigger_id=st.integers(0, 4), word=st.sampled_from(Word))
    def station_answers(self, trigger_id, word):
        if self.shake.answer(trigger_id, Outcome(word=word, code=Code.SCORE), self.now):
            assert trigger_id == self.asked and self.now - self.asked_at <= self.shake.wait_s
            self.truth[trigger_id] = word

    @rule(health=st.builds(Health, link=st.booleans(), ready=st.booleans()))
    def station_changes(self, health):
        self.shake.station(health)

    @rule(dt=st.floats(0, 2))
    def time_passes(self, dt):
        self.now += dt
        self.shake.tick(self.now)

    @precondition(lambda self: self.shake.phase is not Phase.UNSYNCED)
    @invariant()
    def only_a_part_judged_ok_can_pass(self):
        image = self.shake.image()
        for expected in range(5):
            if accept(encode(image, 3, 1), expected, 0):
                assert self.truth.get(expected) is Word.OK
                assert self.shake.health.link and image.trigger_id == expected

    @invariant()
    def the_bits_agree_with_each_other(self):
        bits = self.shake.image().bits
        assert not (bits & Bits.READY and bits & Bits.BUSY)
        assert not (bits & Bits.VALID and bits & Bits.BUSY)
        assert bool(bits & Bits.READY) <= bool(bits & Bits.LINK)
        assert bits & Bits.VALID or self.shake.image().outcome.word is Word.NONE


TestAnyHandshake = AnyHandshake.TestCase
TestAnyHandshake.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
