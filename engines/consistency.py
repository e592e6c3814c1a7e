"""Do the words agree with the map? A contradiction is marked, the verdict never changes."""

import re
from collections.abc import Callable

from engines.describer import Description
from engines.facts import EVERYWHERE, LOCATIONS, Facts

SIZE_TOLERANCE = 0.2  # the map's own grid makes a length no better than this

_LONGEST_FIRST = sorted((n for n in LOCATIONS if n != EVERYWHERE), key=len, reverse=True)
_PLACES = re.compile(r"\b(" + "|".join(_LONGEST_FIRST) + r")\b")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(px|mm)\b")
_DENIAL = re.compile(r"\bno (visible )?(defect|anomal|damage)")
_SYNONYMS = (
    (r"\bupper\b", "top"),
    (r"\blower\b", "bottom"),
    (r"[- ]+", " "),
    (r"\b(?:centre|middle)\b", "center"),
)


def contradiction(description: Description, facts: Facts) -> str | None:
    """One sentence when a description disagrees with the map, else None.

    Held against the map: `defective` against the verdict; if defective, the place against the
    cells that regions touch, the count, the size within 20 %, and what the free sentence says.
    """
    if description.defective != facts.defective:
        said, judged = (_fine(x.defective) for x in (description, facts))
        return f"the words say {said}, the verdict says {judged}"
    if not facts.defective:
        return None
    checks: tuple[Callable[[Description, Facts], str | None], ...] = (
        _denial,
        _place,
        _count,
        _size,
    )
    return next((found for check in checks if (found := check(description, facts))), None)


def places_in(sentence: str) -> tuple[str, ...]:
    """The 3x3 cells that a free sentence names, synonyms included, in order."""
    text = sentence.lower()
    for pattern, word in _SYNONYMS:
        text = re.sub(pattern, word, text)
    return tuple(dict.fromkeys(_PLACES.findall(text)))


def _fine(defective: bool) -> str:
    return "defective" if defective else "not defective"


def _denial(said: Description, facts: Facts) -> str | None:
    if _DENIAL.search(said.sentence.lower()):
        return "the sentence says there is no defect, the verdict says defective"
    return None


def _place(said: Description, facts: Facts) -> str | None:
    allowed = {facts.location, *facts.cells}
    for place in (said.location, *places_in(said.sentence)):
        if place not in allowed:
            return f"the words say {place}, the map says {facts.location}"
    return None


def _count(said: Description, facts: Facts) -> str | None:
    if said.count != facts.count:
        return f"the words say {said.count} regions, the map has {facts.count}"
    return None


def _size(said: Description, facts: Facts) -> str | None:
    # What was printed, not the exact value: 1.2 mm must agree with itself after rounding.
    number, unit = facts.size_text.split(" ", 1)
    true = float(number)
    for value, said_unit in _SIZE.findall(f"{said.size_mm_or_px}; {said.sentence}"):
        if said_unit != unit or abs(float(value) - true) > SIZE_TOLERANCE * true:
            return f"the words say {value} {said_unit}, the map says {facts.size_text}"
    return None
