"""For all tests: what failed is remembered by the name that a later run knows it by."""

import re

import pytest

_GROUP = re.compile(r"@[\w-]+$")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """pytest-xdist adds "@group" to the names of grouped tests, and `--last-failed` then finds none of them."""
    # None, or not there at all: pytest -p no:cacheprovider.
    cache = getattr(session.config, "cache", None)
    if cache is None or hasattr(session.config, "workerinput"):
        return
    failed = cache.get("cache/lastfailed", {})
    cache.set("cache/lastfailed", {_GROUP.sub("", name): value for name, value in failed.items()})
