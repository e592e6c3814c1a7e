"""The OPC UA view of a result: field names of OPC 40001-101 (Machinery, Result Transfer).

The names and the meaning of the numbers follow that specification, so that what a SCADA engineer
knows applies; conformance is not claimed (no structured data types, no file transfer, and on
purpose no GetLatestResult: pairing by "latest" is how a line gets one part late).
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from pydantic import ValidationError

from station.gateways.bridge import outcome
from station.gateways.registers import Code, Outcome, Word
from station.schema import Result
from station.schema_ctl import Trigger

NAMESPACE = "urn:inspection-station:result-transfer"


class Evaluation(IntEnum):
    """ResultEvaluationEnum of OPC 40001-101. Only OK lets a part pass."""

    UNDEFINED = 0
    OK = 1
    NOT_OK = 2
    NOT_DECIDABLE = 3


_EVALUATIONS = {
    Word.OK: Evaluation.OK,
    Word.NG: Evaluation.NOT_OK,
    Word.UNDECIDED: Evaluation.NOT_DECIDABLE,
    Word.ERROR: Evaluation.NOT_DECIDABLE,
}


def evaluation(answer: Outcome) -> Evaluation:
    """The evaluation of an outcome; a refusal is UNDEFINED."""
    return _EVALUATIONS.get(answer.word, Evaluation.UNDEFINED)


@dataclass(frozen=True, slots=True)
class ResultView:
    """One result as events and methods show it. `fields` is in the order of `EVENT_FIELDS`."""

    result_id: str
    fields: dict[str, Any]


# name -> OPC UA built-in type (name in asyncua's ua.VariantType)
EVENT_FIELDS: dict[str, str] = {
    "ResultId": "String",
    "PartId": "String",
    "StepId": "String",
    "IsPartial": "Boolean",
    "IsSimulated": "Boolean",
    "ResultState": "Int32",
    "InternalRecipeId": "String",
    "InternalConfigurationId": "String",
    "CreationTime": "DateTime",
    "StartTime": "DateTime",
    "EndTime": "DateTime",
    "AcquisitionDuration": "Double",
    "ProcessingDuration": "Double",
    "ResultEvaluation": "Int32",
    "ResultEvaluationCode": "Int64",
    "ResultEvaluationDetails": "String",
    "ResultContent": "String",
}
_COMPLETED = 1  # ResultState: completed


def result_id(result: Result) -> str:
    """System-wide unique: line, station and the 64-bit trigger id."""
    return f"{result.line}/{result.station}/{result.trigger_id}"


def view(result: Result, *, allow_simulated: bool) -> ResultView:
    """A result as OPC UA shows it; late or not allowed simulated OKs become NOT_DECIDABLE."""
    answer = outcome(result, allow_simulated=allow_simulated)
    timings = result.timings_us
    fields: dict[str, Any] = {
        "ResultId": result_id(result),
        "PartId": result.part_id,
        "StepId": str(result.attempt),
        "IsPartial": False,
        "IsSimulated": result.simulated,
        "ResultState": _COMPLETED,
        "InternalRecipeId": result.recipe,
        "InternalConfigurationId": result.config_sha,
        "CreationTime": _time(result.t_done_us),
        "StartTime": _time(result.t_trigger_us),
        "EndTime": _time(result.t_done_us),
        "AcquisitionDuration": timings.acquire / 1000,
        "ProcessingDuration": timings.infer / 1000,
        "ResultEvaluation": int(evaluation(answer)),
        "ResultEvaluationCode": int(answer.code),
        "ResultEvaluationDetails": f"{answer.word.name} {answer.code.name.lower()}",
        "ResultContent": _content(result),
    }
    return ResultView(fields["ResultId"], fields)


def lawful(trigger_id: str, part_id: str, deadline_ms: int) -> bool:
    """Whether the station would read a TRIGGER of these: a client may write what it likes into
    PartId and DeadlineMs, and must not wait out a deadline of days for its refusal."""
    try:
        Trigger(rid="0", trigger_id=trigger_id, part_id=part_id, deadline_ms=deadline_ms)
    except ValidationError:
        return False
    return True


def refusal_details(code: Code) -> str:
    """What a refused part's ResultEvaluationDetails says."""
    return f"REFUSED {code.name.lower()}"


def _content(result: Result) -> str:
    """Score, threshold and regions as JSON; the whole body stays with the station."""
    return json.dumps(
        {
            "score": result.score,
            "threshold": result.threshold,
            "region_count": result.region_count,
            "regions": [region.model_dump() for region in result.regions],
            "image_ref": result.image_ref,
            "epoch": result.epoch,
            "seq": result.seq,
            "late": result.late,
        },
        separators=(",", ":"),
    )


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1e6, UTC).replace(tzinfo=None)  # asyncua: naive UTC
