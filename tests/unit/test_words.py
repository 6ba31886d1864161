from __future__ import annotations

import pytest
from stucktrace.diagnosis import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "an unknown time"),
        (-1.0, "0 s"),
        (0.04, "0 s"),
        (0.42, "0.4 s"),
        (1.42, "1.4 s"),
        (5.0, "5 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (34.6, "35 s"),
        (119.0, "119 s"),
        (720.0, "12 min"),
        (3 * 3600.0, "3 h"),
        (4 * 86400.0, "4 d"),
    ],
)
def test_age(seconds: float | None, text: str) -> None:
    assert words.age(seconds) == text


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (None, "an unknown number of bytes"),
        (1, "1 byte"),
        (563, "563 bytes"),
        (12_345, "12 kB"),
        (3_200_000, "3.2 MB"),
        (1_342_177_273, "1.3 GB"),
    ],
)
def test_size(length: int | None, text: str) -> None:
    assert words.size(length) == text


def test_count_and_listing() -> None:
    assert words.count(1, "segment") == "1 segment"
    assert words.count(2, "query", "queries") == "2 queries"
    assert words.listing([]) == ""
    assert words.listing(["a"]) == "a"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.listing("abcdefg", most=4) == "a, b, c, d and 3 more"


def test_process() -> None:
    assert words.process(812, "redis-server") == "redis-server (pid 812)"
    assert words.process(812) == "pid 812"
