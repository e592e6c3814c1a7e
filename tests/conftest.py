"""For every room: tests keep engine choices in build/, never in the home of who runs them."""

import os
from collections.abc import Callable, Generator
from pathlib import Path

import promises
import pytest

# In the environment, so that the stations that tests start as processes use it too. One folder for
# all tests: measuring which engine is fastest takes seconds, and it need not be done for each.
os.environ.setdefault("STATION_CACHE", str(Path(__file__).parent.parent / "build" / "test-cache"))

_TOLD = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`figure("P4", "busy p99 0.96 ms")`: printed, and kept for docs/promises.md."""
    told = request.node.stash.setdefault(_TOLD, [])

    def tell(promise: str, text: str) -> None:
        assert promise in promises.PROMISES
        print(f"{promise}: {text}")
        told.append((promise, text))

    return tell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what a test told together with how it ended."""
    report = yield
    if report.when == "call" and (told := item.stash.get(_TOLD, [])):
        promises.keep(item.nodeid, told, passed=report.passed)
    return report
