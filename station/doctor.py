"""`station doctor`: what can run on this machine, and why something cannot.

Each check answers with one sentence and a state; the exit code is that of the first failure
(the codes of every other command), 0 when nothing fails. Warnings do not change it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from engines.errors import StationError
from station.settings import Settings

State = Literal["ok", "warn", "fail", "info"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. `code` is the exit code if it is a failure."""

    name: str
    state: State
    text: str
    code: int = 1


Check = Callable[[Settings], Iterator[Finding]]


def checks() -> tuple[tuple[str, Check], ...]:
    """All checks by section, in the order of the report."""
    from station import doctor_cameras, doctor_machine, doctor_product

    return (
        ("software", doctor_machine.software),
        ("runtimes", doctor_machine.runtimes),
        ("machine", doctor_machine.machine),
        ("disk", doctor_machine.disks),
        ("ports", doctor_machine.ports),
        ("cameras", doctor_cameras.cameras),
        ("bundle", doctor_product.bundle),
        ("recipes", doctor_product.recipes),
        ("describer", doctor_product.describer),
    )


def examine(settings: Settings) -> Iterator[tuple[str, Finding]]:
    """Run every check; one that fails in an unforeseen way is itself a finding."""
    for section, check in checks():
        try:
            for finding in check(settings):
                yield section, finding
        except StationError as error:
            yield section, Finding(section, "fail", str(error), error.code)
        except Exception as error:
            # A doctor that dies at one organ tells nothing of the others.
            text = f"the check itself failed: {type(error).__name__}: {error}"
            yield section, Finding(section, "fail", text)


def exit_code(findings: list[Finding]) -> int:
    """0, or the code of the first failure."""
    return next((finding.code for finding in findings if finding.state == "fail"), 0)


def run_doctor(
    settings: Settings, as_json: bool = False, say: Callable[[str], None] = print
) -> int:
    """Examine and tell; the exit code."""
    findings: list[Finding] = []
    told = ""
    for section, finding in examine(settings):
        findings.append(finding)
        if as_json:
            say(json.dumps({"section": section, **asdict(finding)}))
            continue
        if section != told:
            told = section
            say(f"\n{section}")
        mark = {"ok": "ok  ", "warn": "warn", "fail": "FAIL", "info": "    "}[finding.state]
        say(f"  {mark}  {finding.name}: {finding.text}")
    code = exit_code(findings)
    if not as_json:
        count = sum(finding.state == "fail" for finding in findings)
        say("\nall well" if code == 0 else f"\n{count} failed; exit code {code}")
    return code
