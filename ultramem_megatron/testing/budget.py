"""How much a test tries: a little in `make test`, a lot in `make test-deep`."""

import os

DEPTH = "ULTRAMEM_TEST_DEPTH"
"""Variable of the environment; `make test-deep` sets it to ``deep``."""


def is_deep() -> bool:
    """Whether this run of the tests has time."""
    return os.environ.get(DEPTH, "") == "deep"


def budget(normal: int, deep: int) -> int:
    """Examples, steps or cases to try.

    Args:
        normal: In `make test`: what finds the fault that the test is for.
        deep: In `make test-deep`, before a release.
    """
    return deep if is_deep() else normal
