"""A plugin of pytest that writes a record of every test: seconds, processor seconds, and what they went into."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_profile.watch import FOLDER, append, watch_process

causes = watch_process("tests")
SITE = str(Path(__file__).parent / "site")
os.environ["PYTHONPATH"] = os.pathsep.join([SITE, *filter(None, [os.environ.get("PYTHONPATH")])])


def pytest_configure(config: pytest.Config) -> None:
    """Load what a test could load first, so that no test is charged for it."""
    os.environ.setdefault(FOLDER, str(config.rootpath / ".pytest_cache" / "profile"))
    Path(os.environ[FOLDER]).mkdir(parents=True, exist_ok=True)


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """One record a test, its fixtures included."""
    before = causes.take()
    began, spent = time.time(), processor_seconds()
    result = yield
    append(
        {
            "test": item.nodeid,
            "worker": os.environ.get("PYTEST_XDIST_WORKER", "main"),
            "began": began,
            "seconds": round(time.time() - began, 3),
            "processor_seconds": round(processor_seconds() - spent, 3),
            "causes": causes.take(),
            "before": before,
        }
    )
    return result


phases: dict[str, float] = {}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: "pytest.FixtureDef[object]") -> Iterator[None]:
    """Fixtures that tests share."""
    began = time.time()
    result = yield
    if fixturedef.scope != "function":
        append({"fixture": fixturedef.argname, "seconds": round(time.time() - began, 3), "at": sys.argv[0]})
    return result
