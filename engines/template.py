"""The describer without a language model: the map's facts in the same schema, in one sentence."""

import time
from collections.abc import Sequence

from engines.describer import DescribeRequest, Description
from engines.facts import EVERYWHERE, Facts

# Which defect nouns fit a shape: a hint for the category, used only when the recipe names the noun.
_LINEAR = ("crack", "scratch", "cut", "fray", "break", "line", "hair")
_COMPACT = ("hole", "pit", "bubble", "spot", "stain", "dent", "blow", "contamination", "foreign")
ANOMALY = "anomaly"

_PLACE = {EVERYWHERE: "over most of it", "center": "in the center"}
_FORM = {"line": "line-shaped", "spot": "small", "patch": "patchy"}
_NUMBER = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class TemplateDescriber:
    """Facts from the map in a fixed sentence. `reason` says why no model speaks, if one should."""

    name = "template"

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason

    def describe(self, request: DescribeRequest, deadline_s: float | None = None) -> Description:
        """Description of one part; takes well under a millisecond at 240 x 240."""
        return describe_facts(request, request.facts(), note=self.reason)

    def describe_many(
        self, requests: Sequence[DescribeRequest], deadline_s: float | None = None
    ) -> list[Description]:
        """Descriptions of several parts, in order."""
        return [self.describe(request, deadline_s) for request in requests]

    def close(self) -> None:
        """Nothing to free."""


def describe_facts(
    request: DescribeRequest, facts: Facts, note: str | None = None, ms: float | None = None
) -> Description:
    """The template's description of `facts`; `note` says why the template speaks, if it matters."""
    start = time.monotonic()
    category = category_word(request.kinds, facts) if facts.defective else "none"
    sentence = sentence_of(request.noun, category, facts)
    return Description(
        trigger_id=request.trigger_id,
        part_id=request.part_id,
        attempt=request.attempt,
        defective=facts.defective,
        category=category,
        count=facts.count,
        location=facts.location,
        shape=facts.shape,
        size_mm_or_px=facts.size_text,
        colour=facts.colour,
        confidence=facts.confidence,
        sentence=sentence,
        source="template",
        model="template",
        note=note[:500] if note else None,
        ms=(time.monotonic() - start) * 1e3 if ms is None else ms,
    )


def category_word(categories: Sequence[str], facts: Facts) -> str:
    """The recipe's defect noun that fits the shape, its only one, or "anomaly": never a guess more.

    The map knows where and how large, not what: without a noun in the recipe nothing is claimed.
    """
    if len(categories) == 1:
        return categories[0][:48]
    hints = _LINEAR if facts.shape in {"line", "elongated"} else _COMPACT
    fitting = [c for c in categories if any(hint in c.lower() for hint in hints)]
    return fitting[0][:48] if len(fitting) == 1 else ANOMALY


def article(words: str) -> str:
    """The words with "a" or "an" in front."""
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def number_word(count: int) -> str:
    """Count as a word up to nine, as digits above."""
    return _NUMBER[count] if 0 <= count < len(_NUMBER) else str(count)


def place_words(location: str) -> str:
    """A location as it stands in a sentence: "at the top left"."""
    return _PLACE.get(location, f"at the {location}")


def sentence_of(noun: str, category: str, facts: Facts) -> str:
    """Scene sentence, then what, where, how large, what colour and how sure."""
    noun = noun[:60]
    scene = f"This is a picture of {article(noun)}."
    if not facts.defective:
        return f"{scene} There is no visible defect."
    if facts.count == 0:
        return f"{scene} Its score is over the limit, but no single place stands out."
    look = f"{facts.colour} {_FORM.get(facts.shape, facts.shape)} {category}"
    place = place_words(facts.location)
    size = f"about {facts.size_text} long"
    if facts.count == 1:
        return f"{scene} There is {article(look)} {place}, {size}."
    count = number_word(facts.count)
    return f"{scene} There are {count} defects; the strongest is {article(look)} {place}, {size}."
