"""What was asked for, which exit status speaks for several answers, and a write that goes wrong."""

from __future__ import annotations

import click
import pytest
from stucktrace.commands.common import duration, parse_pid, worst
from stucktrace.errors import UsageError


@pytest.mark.parametrize("text", ["1", "4194304", "00012"])
def test_process_ids(text: str):
    assert parse_pid(text) == int(text)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        "+1",
        "",
        " 1",
        "1.0",
        "0x10",
        "٣",
        "²",
        "4194305",
        "9" * 5_000,
        "gunicorn",
        "self",
        "1_0",
        "\x1b[31m1",
    ],
)
def test_what_cannot_be_a_process_id(text: str):
    with pytest.raises(UsageError) as error:
        parse_pid(text)
    assert error.value.exit_status == 2
    assert error.value.remedy
    assert len(error.value.message) < 100


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        (set(), 0),
        ({0}, 0),
        ({0, 5}, 5),
        ({0, 4, 5}, 4),
        ({0, 3, 4, 5}, 3),
        ({0, 1, 3, 4, 5}, 1),
    ],
)
def test_the_worst_status_speaks(statuses: set[int], wanted: int):
    assert worst(statuses) == wanted


WAITING = click.Option(["--for"])


@pytest.mark.parametrize(("typed", "wanted"), [("30s", 30), ("2m", 120), ("0.5", 0.5), ("0", 0), (None, None)])
def test_lengths_of_time(typed: str | None, wanted: float | None):
    assert duration(0, 600)(click.Context(click.Command("x")), WAITING, typed) == wanted


@pytest.mark.parametrize("typed", ["", "-1", "11m", "nan", "inf", "3x", "30 s 2", "1e2", "9" * 5_000])
def test_what_is_no_length_of_time(typed: str):
    with pytest.raises(click.BadParameter) as error:
        duration(0, 600)(click.Context(click.Command("x")), WAITING, typed)
    assert len(error.value.message) < 150
