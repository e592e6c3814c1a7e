"""The documents: every command and every link in them exists."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner
from uikit import paper
from uikit.webdriver import missing

from calibration.enroll import MAX_SHOTS, default_shots
from calibration.thresholds import parts_needed
from station.cli import app
from station.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("first-line.md", "operator.md", "developer.md", "troubleshooting.md")


def commands(page):
    """(line) of every `station ...` in code."""
    text = (DOCS / page).read_text()
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    lines += re.findall(r"`(station [a-z][^`]*)`", text)
    return [
        line[line.index("station ") :] for line in lines if re.match(r"(\w+=\S+ )*station ", line)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_with_its_options(page):
    for line in commands(page):
        words = line.split()[1:]
        path = words[:2] if words[0] == "gateway" else words[:1]
        done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
        assert done.exit_code == 0, f"{page}: {line}"
        for option in re.findall(r"--[a-z-]+", line):
            assert option in done.output, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_is_there(page):
    text = (DOCS / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (DOCS / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_named_exists(page):
    text = (DOCS / page).read_text()
    sections = Settings.model_fields
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)(?: =[^`]*)?`", text):
        # station.x and x.py are files or modules.
        if section in sections and section != "station" and key != "py":
            model = sections[section].annotation
            assert key in getattr(model, "model_fields", {key: None}), f"{page}: {section}.{key}"


def test_the_readme_says_how_many_good_parts_end_learning():
    text = (DOCS.parent / "README.md").read_text()
    need, whole, shots, rest = map(
        int,
        re.search(
            r"fewer than (\d+) good parts .*\((\d+) in all give (\d+) references and (\d+) ", text
        ).groups(),
    )
    assert need == rest == parts_needed(0.05)
    assert shots == MAX_SHOTS == default_shots(whole) and default_shots(whole - 1) < shots


def test_a_section_of_the_readme_that_the_makefile_names_is_there():
    readme = (DOCS.parent / "README.md").read_text()
    for section in re.findall(r'README, "([^"]+)"', (DOCS.parent / "Makefile").read_text()):
        assert f"\n## {section}\n" in readme


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_the_operators_page_is_one_sheet_of_paper(tmp_path):
    assert paper.pdf(DOCS / "operator.md", tmp_path / "operator.pdf") == 1
    assert paper.pdf(DOCS / "troubleshooting.md", tmp_path / "longer.pdf") > 1


def test_the_documents_stay_short():
    for page in PAGES:
        assert len((DOCS / page).read_text().splitlines()) < 170
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
