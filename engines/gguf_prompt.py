"""What the language model is told and the shape of what it may answer.

The sequence is the paper's (III-D): image, text, map and learned embeddings
and a question. In the model's own template the instruction comes first, so that its KV state can
be kept for every part; in the paper's order (`### Human: <Img>...`) the image comes early and
little can be kept. The findings of the map stand beside the embeddings as text, because the
description must be right: a small model copies what it reads better than it recalls. What the
map cannot say, the kind of the defect, is what the embeddings are for.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engines.describer import DescribeRequest, Description
from engines.facts import COLOURS, LOCATIONS, SHAPES, Facts
from engines.template import ANOMALY, article, category_word, place_words

Format = Literal["own", "paper"]
SYSTEM = "You describe parts of a production line."
INSTRUCTION = "Copy the findings into one JSON object and add category and sentence.\n\n"
IMAGE, END_IMAGE = "<Img>", "</Img> "
HUMAN, ASSISTANT = "### Human: ", "\n### Assistant:"
STOPS = ("###", "<|im_end|>", "</s>", "\n")
IMAGE_TOKENS = 1  # of the 21 prefix embeddings the first stands between <Img> and </Img>
SENTENCE = '","sentence":"'
END = '"}'
CATEGORY, AFTER_CATEGORY = '","category":"', '","count":'  # around the kind in an answer
NONE = "none"
MAX_KINDS = 8
_MARK = "\x1e"  # where the part's own pieces go; occurs in no template


@dataclass(frozen=True)
class Findings:
    """The facts of one part as they are written in prompt and answer."""

    noun: str
    kinds: tuple[str, ...]
    defective: bool
    count: int
    location: str
    shape: str
    size: str
    colour: str
    confidence: str
    category: str | None  # None: the model chooses among `kinds`


_EXAMPLES = (
    Findings("rubber ring", (), False, 0, NONE, NONE, "0 px", NONE, "medium", NONE),
    Findings("steel plate", ("crack", "dent"), True, 1, "top left", "line", "34 px", "black",
             "high", "crack"),
    Findings("glass bottle", ("hole", "stain"), True, 3, "bottom right", "round", "1.2 mm",
             "light grey", "low", "stain"),
)  # fmt: skip


def plain(text: str, limit: int = 40) -> str:
    """A noun as the grammar can repeat it: lower-case letters, digits, spaces and hyphens."""
    return re.sub(r"[^a-z0-9 -]+", " ", text.lower()).strip()[:limit] or "object"


def findings(request: DescribeRequest, facts: Facts, *, model_chooses: bool) -> Findings:
    """Findings of a request; `model_chooses` leaves the category to the model's embeddings.

    It may choose only when the recipe names two kinds or more; else the category is what the
    template says, because nothing better is known.
    """
    noun = plain(request.noun)
    if not facts.defective:
        return Findings(noun, (), False, 0, NONE, NONE, "0 px", NONE, facts.confidence, NONE)
    kinds = tuple(dict.fromkeys(plain(k, 24) for k in request.kinds))[:MAX_KINDS]
    choose = model_chooses and len(kinds) > 1
    category = None if choose else plain(category_word(kinds, facts), 24)
    return Findings(
        noun, kinds, True, min(facts.count, 999), facts.location, facts.shape, facts.size_text,
        facts.colour, facts.confidence, category,
    )  # fmt: skip


def findings_text(f: Findings) -> str:
    """The findings as the prompt shows them, in the answer's own keys and order."""
    kinds = ", ".join(f.kinds) or NONE
    return f"part: {f.noun}; kinds: {kinds}\n{_fields(f, f.category)}\n"


def _fields(f: Findings, category: str | None) -> str:
    yes = "yes" if f.defective else "no"
    known = "" if category is None else f',"category":"{category}"'
    return (
        f'"defective":"{yes}"{known},"count":{f.count},"location":"{f.location}",'
        f'"shape":"{f.shape}","size_mm_or_px":"{f.size}","colour":"{f.colour}",'
        f'"confidence":"{f.confidence}"'
    )


def answer_text(f: Findings, category: str) -> str:
    """The answer that is right for these findings: the examples' and the training's target."""
    sentence = answer_sentence(f, category)
    return f'{{{_fields(f, category)},"sentence":"{sentence}"}}'


def answer_sentence(f: Findings, category: str) -> str:
    """The target sentence: what, where, how large, what colour, how many."""
    return sentences(f, category)[0]


def sentences(f: Findings, category: str) -> tuple[str, ...]:
    """The ways to say one set of fields; the first is what examples and training show."""
    if not f.defective:
        return f"The {f.noun} shows no visible defect.", f"No defect is seen on the {f.noun}."
    if f.count == 0:
        why = "no single place stands out."
        return f"The {f.noun} is over its limit, but {why}", f"Over the limit, but {why}"
    look = f"{f.colour} {category}"
    rest = f"{place_words(f.location)}, about {f.size} long."
    if f.count == 1:
        return f"The {f.noun} has one {look} {rest}", f"One {look} is seen {rest}"
    rest = f"the strongest {article(look)} {rest}"
    return f"The {f.noun} has {f.count} defects, {rest}", f"{f.count} defects are seen, {rest}"


def examples(*, image: bool, first: bool = False) -> str:
    """Worked examples: what makes a 135M model keep to the form.

    With `image` the kind stands as a word where a part's image embedding will stand, and not in
    the findings: that is how the model learns what the embedding is for. `first`: the image comes
    before the findings (the paper's order).
    """
    return "".join(_example(f, image, first) for f in _EXAMPLES)


def _example(f: Findings, image: bool, first: bool) -> str:
    answer = f"{answer_text(f, f.category or ANOMALY)}\n\n"
    if not image:
        return findings_text(f) + answer
    shown, told = f"{IMAGE} {f.category}{END_IMAGE}\n", findings_text(replace(f, category=None))
    return shown + told + answer if first else told + shown + answer


@dataclass(frozen=True)
class Frame:
    """The text around a part: `head` is the same for every part, `tail` asks for the answer."""

    head: str
    tail: str
    image_first: bool
    image: bool = False  # a trained prefix is there: the examples show what it is for

    def before_image(self, f: Findings) -> str:
        """The part's own text before the image embedding."""
        return "" if self.image_first else findings_text(f) + IMAGE

    def after_prefix(self, f: Findings) -> str:
        """The text after the last embedding."""
        return self._early() + findings_text(f) + self.tail if self.image_first else self.tail

    def without_prefix(self, f: Findings) -> str:
        """The part's text when no embeddings are given."""
        return (self._early() if self.image_first else "") + findings_text(f) + self.tail

    def _early(self) -> str:
        return INSTRUCTION + examples(image=self.image, first=True)


def own_turns(
    dialogue: Sequence[tuple[str, str]] = (), *, image: bool = False
) -> list[tuple[str, str]]:
    """Chat turns of the own format, with the mark where a part's pieces go."""
    first = ("user", INSTRUCTION + examples(image=image) + _MARK)
    return [("system", SYSTEM), first, *dialogue]


def own_frame(rendered: str) -> Frame:
    """Frame of the own format from the turns rendered by the model's template."""
    head, tail = rendered.split(_MARK)
    return Frame(head, tail, image_first=False)


def paper_frame(dialogue: Sequence[tuple[str, str]] = (), *, image: bool = False) -> Frame:
    """Frame of the paper's format: `### Human: <Img>` is all that is the same for every part."""
    names = {"user": f"\n{HUMAN}", "assistant": ASSISTANT + " "}
    more = "".join(names[role] + text for role, text in dialogue)
    return Frame(HUMAN + (IMAGE if image else ""), more + ASSISTANT, image_first=True, image=image)


def fields_grammar(kinds: Sequence[str], count: int | None = None) -> str:
    """GBNF of the answer up to its sentence, for defects that may be of these `kinds`.

    Every field is bounded, so that the longest answer fits 128 tokens. `count`: the only number
    allowed (a 135M model copies 10 as 100); None = any up to 999.
    """
    number = '("0" | [1-9] [0-9]? [0-9]?)' if count is None else _literal(str(count))
    bad = (
        _literal('{"defective":"yes","category":"'), _any(tuple(dict.fromkeys((*kinds, ANOMALY)))),
        _literal('","count":'), number,
        _literal(',"location":"'), _any(LOCATIONS), _literal('","shape":"'), _any(SHAPES),
        _literal('","size_mm_or_px":"'), '[0-9]{1,5} ("." [0-9])? (" px" | " mm")',
        _literal('","colour":"'), _any(COLOURS), _literal('","confidence":"'), "sure",
        _literal(SENTENCE),
    )  # fmt: skip
    good = (
        _literal('{"defective":"no","category":"none","count":0,"location":"none",'),
        _literal('"shape":"none","size_mm_or_px":"0 px","colour":"none","confidence":"'), "sure",
        _literal(SENTENCE),
    )  # fmt: skip
    sure = _any(("low", "medium", "high"))
    return f"root ::= {' '.join(bad)} | {' '.join(good)}\nsure ::= {sure}"


def wordings(fields: str, noun: str) -> tuple[str, ...]:
    """The ways to end an answer after its own `fields`: a sentence cannot disagree with them.

    The model chooses the wording; the facts in it are those it has just stated.
    """
    said = json.loads(fields + '"}')
    own = Findings(
        noun, (), said["defective"] == "yes", said["count"], said["location"], said["shape"],
        said["size_mm_or_px"], said["colour"], said["confidence"], None,
    )  # fmt: skip
    return tuple(text + END for text in sentences(own, said["category"]))


def one_of(texts: Sequence[str]) -> str:
    """GBNF that allows exactly these texts."""
    return f"root ::= {_any(texts)}"


# Between these texts stand the slots that the model fills.
_BAD = (
    '{"defective":"', '","category":"', '","count":', ',"location":"', '","shape":"',
    '","size_mm_or_px":"', '","colour":"', '","confidence":"', SENTENCE,
)  # fmt: skip
_GOOD = (
    '{"defective":"',
    '","category":"none","count":0,"location":"none","shape":"none","size_mm_or_px":"0 px",'
    '"colour":"none","confidence":"',
    SENTENCE,
)


def forced(said: str) -> str:
    """The text that must follow an unfinished answer: what the model need not be asked, or "".

    Before the sentence, that is the rest of a key that has begun.
    """
    at = 0
    for literal in _GOOD if '"defective":"no"' in said else _BAD:
        rest = said[at:]
        if not rest.startswith(literal):
            return literal[len(rest) :] if literal.startswith(rest) and (rest or not at) else ""
        at += len(literal)
        while at < len(said) and said[at] not in '",':
            at += 1
    return ""


def _literal(text: str) -> str:
    return json.dumps(text)


def _any(words: Sequence[str]) -> str:
    return "(" + " | ".join(_literal(w) for w in words) + ")"


def parse(text: str, request: DescribeRequest, model: str) -> Description:
    """Description from the model's answer; ValueError when it is not whole or not valid."""
    said = json.loads(text)
    said["defective"] = {"yes": True, "no": False}[said["defective"]]
    return Description(
        trigger_id=request.trigger_id,
        part_id=request.part_id,
        attempt=request.attempt,
        source="llm",
        model=model,
        **said,
    )
