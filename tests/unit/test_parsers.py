"""No parser of foreign data raises anything but what it says, whatever it is given; `make fuzz` does this for longer.

The time of each example is bounded too: a parser whose time grows with the square of what it is given shows here.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stucktrace import recorded_timeouts
from stucktrace.collectors import dwarf_expressions, python, source_lines
from stucktrace.collectors.broker_view_found import _connection as ctl_connection
from stucktrace.collectors.broker_view_management import pid_in
from stucktrace.collectors.broker_view_redis import connection as redis_client
from stucktrace.collectors.pipe_ends import _call
from stucktrace.collectors.proc_net import parse_inet
from stucktrace.collectors.regions import parse as regions
from stucktrace.sinks import journal, sink
from stucktrace.sinks.sentry import _limit_s

from tests.harness.corruption import mutate, mutate_any
from tests.harness.parsers import PARSERS, Parser, check

SECONDS = 10.0
"""For one example on a machine that does other things too; the longest take some hundredths."""


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_it_raises_only_what_it_says(parser: Parser):
    samples = parser.samples()
    assert samples

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32), st.binary(max_size=100))
    def holds(seed: int, junk: bytes) -> None:
        chance = random.Random(seed)
        sample = chance.choice(samples)
        for data in (mutate_any(sample, chance), mutate(sample, chance, 12), junk):
            began = time.thread_time()
            check(parser, data)
            assert time.thread_time() - began < SECONDS, data[:200]

    holds()


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_its_samples_are_understood(parser: Parser):
    for sample in parser.samples():
        parser.parse(sample)


def test_a_line_that_makes_no_sense_costs_itself_only():
    good = "7f00-7f10 r-xp 00000000 08:01 5 /bin/x"
    assert len(regions(f"zz-7f10 r-xp 0 08:01 5 /bin/x\n{good}\n7f10-7f20 r-xp 0 08:01 x\n").regions) == 1
    socket = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 1 0"
    lines = [socket.replace("1F90", "port"), socket, socket.replace("0A", "0A:")]
    assert [inode for inode, _ in parse_inet(iter(lines), "tcp", {12345})] == [12345]
    assert _call([b"0", b"0x"]) == ("", -1) and _call([b"running"]) == ("", -1)


@pytest.mark.parametrize("line", ["a" * 50_000, "a." * 25_000, "with " + "a[b" * 20_000, "(" * 50_000])
def test_a_line_of_source_that_nobody_wrote(line: str):
    """The time to search it would grow with the square of its length."""
    began = time.thread_time()
    assert source_lines.called_in(line) == source_lines.name_in(line, "f") == ""
    assert time.thread_time() - began < 1.0


@pytest.mark.parametrize("digits", ["\u00b2", "9" * 5000, "-1", ""])
def test_what_looks_like_a_number_and_is_none(digits: str):
    assert pid_in({"pid": digits}) is None
    assert _limit_s(f"{digits}:error") == (float(digits) if digits == "9" * 5000 else 0.0)
    assert redis_client(f"id=1 addr=h:1 idle={digits}").idle_s in (None, float("inf"))


def test_what_a_broker_says_in_another_shape():
    assert ctl_connection({"client_properties": 1.5, "peer_host": [1 << 20] * 8}).client == ""


@pytest.mark.parametrize("record", [{}, {"event": {}}, {"event": 1, "timeline": []}, {"event": {}, "timeline": 7}])
def test_a_spooled_item_that_is_no_alert(record: dict[str, object]):
    with pytest.raises(ValueError, match="no alert"):
        sink.unpack(journal.pack(record))


def test_a_shift_by_what_is_negative():
    """DW_OP_lit8, const1s -1, and shr or shl."""
    assert dwarf_expressions.evaluate(b"\x38\x09\xff\x25", {}, int) == 0
    assert dwarf_expressions.evaluate(b"\x38\x09\xff\x24", {}, int) == 0


def test_a_time_that_no_float_holds(tmp_path: Path):
    event = {"schema": "stucktrace.alert/1", "code": "worker-timeout", "type": "opened", "time": 10**400}
    file = tmp_path / "alerts"
    file.write_text(json.dumps({**event, "affected": [{"pid": 1, "since_s": 1}]}))
    assert list(recorded_timeouts.from_alerts(str(file), lambda _: None)) == []


def test_a_local_that_is_none():
    frame = {"name": "f", "filename": "/a.py", "line": 1, "locals": ["x", None, {"name": "a", "repr": "1"}]}
    assert python._frame(frame).locals == (("a", "1"),)
