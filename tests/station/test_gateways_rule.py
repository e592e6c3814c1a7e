"""The register map and the acceptance rule: only a whole, fresh OK for the expected part passes."""

import itertools
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.gateways.acceptance import STALE_MS, Answer, accept, decide, intact
from station.gateways.registers import (
    INPUT_COUNT,
    Bits,
    Code,
    Image,
    Input,
    Outcome,
    PlcWords,
    Word,
    encode,
    holding_words,
    plc_words,
    reason_code,
    scaled,
)
from station.schema import Reason

GOOD = Bits.VALID | Bits.LINK | Bits.SYNCED
IDS = st.integers(1, 2**32 - 1)
WORDS16 = st.integers(0, 0xFFFF)


def image(word=Word.OK, trigger_id=7, bits=GOOD, **more):
    return Image(bits, trigger_id, 1, Outcome(word=word, code=Code.SCORE, **more))


def ok_words(trigger_id=7, beat=100):
    return encode(image(trigger_id=trigger_id), beat, 0xABCD1234)


images = st.builds(
    Image,
    bits=st.integers(0, 127).map(Bits),
    trigger_id=st.integers(0, 2**32 - 1),
    trigger_echo=WORDS16,
    outcome=st.builds(
        Outcome,
        word=st.sampled_from(Word),
        code=st.sampled_from(Code),
        score=st.none() | st.floats(allow_nan=True, allow_infinity=True),
        defects=st.integers(0, 10**9),
        seq=st.integers(0, 2**53),
    ),
)


def test_a_whole_fresh_ok_for_the_expected_part_passes():
    assert accept(ok_words(), 7, 0)
    assert accept(ok_words(), 7, STALE_MS)


@pytest.mark.parametrize("word", [w for w in Word if w is not Word.OK])
def test_every_other_verdict_word_rejects(word):
    assert decide(encode(image(word), 100, 1), 7, 0) is Answer.REJECT


def test_of_all_65536_verdict_words_only_one_passes():
    words = list(ok_words())
    passing = []
    for word in range(0x10000):
        words[Input.VERDICT] = word
        key = word ^ 0x36C9
        words[Input.BOND_HI], words[Input.BOND_LO] = key, 7 ^ key
        if accept(words, 7, 0):
            passing.append(word)
    assert passing == [0x5A5A]


@pytest.mark.parametrize("fill", [0x0000, 0xFFFF, 0x5A5A, 0xA5A5])
@pytest.mark.parametrize("expected", [0, 1, 0xFFFFFFFF, 0x5A5A5A5A])
def test_a_constant_image_never_passes(fill, expected):
    assert not accept([fill] * INPUT_COUNT, expected, 0)


def test_every_constant_image_of_any_word_rejects():
    assert not any(accept([w] * INPUT_COUNT, w << 16 | w, 0) for w in range(0x10000))


@pytest.mark.parametrize("age", [STALE_MS + 1, 1e9, math.inf, math.nan, -1])
def test_a_stale_image_never_passes(age):
    assert not accept(ok_words(), 7, age)


@pytest.mark.parametrize("bit", [Bits.VALID, Bits.LINK, Bits.SYNCED])
def test_each_needed_bit_is_needed(bit):
    assert not accept(encode(image(bits=GOOD & ~bit), 100, 1), 7, 0)


@pytest.mark.parametrize("extra", [Bits.BUSY, 0x80, 0x0100, 0x8000])
def test_busy_or_a_bit_of_the_future_rejects(extra):
    words = list(ok_words())
    words[Input.BITS] |= int(extra)
    assert not accept(words, 7, 0)


def test_every_single_bit_flip_in_a_deciding_word_rejects():
    deciding = [a for a in Input if a <= Input.BOND_LO] + [Input.GUARD]
    harmless = {
        (Input.BITS, i)
        for i, b in enumerate((Bits.READY, None, None, None, None, Bits.FAULT, Bits.SIMULATED))
        if b
    }
    for address, bit in itertools.product(deciding, range(16)):
        words = list(ok_words())
        words[address] ^= 1 << bit
        assert accept(words, 7, 0) is ((address, bit) in harmless), (address, bit)


@pytest.mark.parametrize("length", [0, 1, INPUT_COUNT - 1, INPUT_COUNT + 1])
def test_a_read_of_another_length_rejects(length):
    assert not accept((list(ok_words()) * 2)[:length], 7, 0)


@given(images, WORDS16, st.integers(0, 2**32 - 1), IDS)
@settings(max_examples=500, deadline=None)
def test_what_passes_is_exactly_a_valid_ok_of_that_id(shown, beat, gateway, expected):
    words = encode(shown, beat, gateway)
    should = (
        shown.outcome.word is Word.OK
        and shown.trigger_id == expected
        and shown.bits & (GOOD | Bits.BUSY) == GOOD
    )
    assert intact(words)
    assert accept(words, expected, 0) is should


@given(images, images, WORDS16, st.integers(1, 0xFFFF), st.integers(0, INPUT_COUNT))
@settings(max_examples=1000, deadline=None)
def test_a_read_torn_in_two_never_passes(first, second, beat, step, cut):
    """The first `cut` registers of one image and the rest of another."""
    a, b = encode(first, beat, 1), encode(second, beat + step, 1)
    words = a[:cut] + b[cut:]
    for expected in (first.trigger_id, second.trigger_id):
        if accept(words, expected, 0):
            whole = a if words[Input.GUARD] == a[Input.GUARD] else b
            assert cut in (0, 1, INPUT_COUNT) and accept(whole, expected, 0)


def test_every_torn_read_of_two_parts_in_a_row_rejects_the_second():
    """Part 7 was OK, part 8 is not: no cut, in either order, makes 8 pass (exhaustive)."""
    before = encode(image(trigger_id=7), 100, 1)
    for word in [w for w in Word if w is not Word.OK]:
        for bits in map(Bits, range(128)):
            after = encode(image(word, trigger_id=8, bits=bits), 101, 1)
            for cut in range(INPUT_COUNT + 1):
                assert not accept(before[:cut] + after[cut:], 8, 0)
                assert not accept(after[:cut] + before[cut:], 8, 0)


def test_no_mixture_word_by_word_of_two_parts_passes_the_wrong_one():
    """Even a reader that mixes single words of two images (2^8 deciding words, exhaustive)."""
    ok, other = encode(image(trigger_id=7), 100, 1), encode(image(Word.NG, trigger_id=8), 101, 1)
    deciding = [1, 2, 3, 4, 5, 6, 7, 20]
    for pick in itertools.product((0, 1), repeat=len(deciding)):
        words = list(ok)
        for address, from_other in zip(deciding, pick, strict=True):
            words[address] = (ok, other)[from_other][address]
        assert not accept(words, 8, 0)


@given(st.lists(WORDS16, min_size=INPUT_COUNT, max_size=INPUT_COUNT), IDS)
@settings(max_examples=500, deadline=None)
def test_noise_never_passes(words, expected):
    assert not accept(words, expected, 0)


def test_the_verdict_words_differ_in_at_least_eight_bits():
    for a, b in itertools.combinations(Word, 2):
        assert (a ^ b).bit_count() >= 8


@given(st.integers(0, 2**64), st.floats(width=32))
def test_every_image_is_words_of_16_bits(number, score):
    words = encode(image(score=score, defects=number, part_ms=number, seq=number), number, number)
    assert len(struct.pack(f">{INPUT_COUNT}H", *words)) == 2 * INPUT_COUNT


@pytest.mark.parametrize(
    ("value", "word"),
    [
        *((0.0, 0), (0.5, 500), (1.2345, 1234), (65.534, 65534), (65.535, 65534)),
        *((1e300, 65534), (-1.0, 0), (math.inf, 65534), (-math.inf, 0)),
        *((math.nan, 65535), (None, 65535)),
    ],
)
def test_scores_saturate_and_no_score_is_all_ones(value, word):
    assert scaled(value) == word


def test_every_reason_of_the_station_has_its_own_code():
    codes = [reason_code(reason) for reason in Reason]
    assert len(set(codes)) == len(Reason) and max(codes) < 99
    assert reason_code("something_new") is Code.UNKNOWN


@given(WORDS16, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_what_the_plc_writes_reads_back(trigger, trigger_id, ack_id):
    words = PlcWords(trigger, trigger_id, ack_id)
    assert plc_words(holding_words(words)) == words
