"""Observations in, events out."""

from __future__ import annotations

from typing import Any

import pytest
from stucktrace.alerts import (
    AFFECTED_SHOWN,
    EXITED,
    KILLED,
    RECOVERED,
    UPDATE_AFTER_S,
    Alerts,
    Member,
    Observed,
    fingerprint,
)

from tests.harness.agent import validator

NOW = 1_700_000_000.0


def report(
    code: str = "half-open",
    confidence: str = "likely",
    remote: str = "10.0.0.9:6379",
    beside: tuple[str, ...] = (),
    **frame: Any,
) -> dict[str, Any]:
    shown = {"function": "publish", "file": "/venv/lib/python3.11/site-packages/shop/tasks.py", "line": 7, **frame}
    return {
        "verdict": {
            "code": code, "severity": "critical", "confidence": confidence, "summary": f"it is {code}", "tid": 7, "fd": 5, "frame": 1,
        },
        "findings": [{"code": found, "confidence": "likely"} for found in (code, *beside)],
        "threads": [{"tid": 7, "python": [{"function": "recv", "file": "/x/socket.py", "line": 1}, shown]}],
        "sockets": [{"fd": 5, "remote": remote, "remote_name": None}],
    }  # fmt: skip


class Script:
    """Alerts under a clock that the test turns."""

    def __init__(self) -> None:
        self.alerts = Alerts("node")
        self.now = NOW

    def observe(self, pid: int, **what: Any) -> None:
        self.alerts.observe(Observed(Member(pid, 1), NOW - 5, report(**what)))

    def tick(self, seconds: float = 0.25) -> list[dict[str, Any]]:
        self.now += seconds
        events = self.alerts.tick(self.now)
        for event in events:
            validator().validate(event)
        return events


def test_an_alert_is_opened_once_and_resolved_with_its_duration():
    script = Script()
    script.observe(1)
    (opened,) = script.tick()
    assert (opened["type"], opened["code"], opened["count"], opened["how"]) == ("opened", "half-open", 1, None)
    assert opened["affected"] == [{"pid": 1, "pod": None, "since_s": 5.25}] and opened["report"]
    script.observe(1)
    assert script.tick() == []
    script.alerts.left(Member(1, 1), RECOVERED)
    (resolved,) = script.tick()
    assert (resolved["type"], resolved["how"], resolved["duration_s"]) == ("resolved", "recovered", 5.75)
    assert (resolved["id"], resolved["count"], resolved["affected"]) == (opened["id"], 1, [])
    assert script.tick(10_000) == []


def test_many_processes_in_one_fault_are_one_alert():
    script = Script()
    for pid in range(1, 501):
        script.observe(pid)
    (opened,) = script.tick()
    assert opened["count"] == 500 and len(opened["affected"]) == AFFECTED_SHOWN
    for pid in range(1, 500):
        script.alerts.left(Member(pid, 1), KILLED)
    assert script.tick() == []
    script.alerts.left(Member(500, 1), EXITED)
    (resolved,) = script.tick()
    assert (resolved["how"], resolved["count"]) == ("killed", 500)


def test_it_is_updated_when_twice_as_many_are_in_it():
    script = Script()
    script.observe(1)
    script.tick()
    counts = []
    for pid in range(2, 20):
        script.observe(pid)
        counts += [event["count"] for event in script.tick(2)]
    assert counts == [2, 4, 8, 16]


def test_dozens_that_come_at_once_are_one_update():
    script = Script()
    script.observe(1)
    script.tick()
    for pid in range(2, 20):
        script.observe(pid)
        assert not script.tick(0.01)
    assert [event["count"] for event in script.tick(1)] == [19]


def test_what_happened_in_a_moment_is_not_said_again():
    script = Script()
    script.observe(1, code="worker-timeout")
    script.tick()
    assert script.tick(7200) == []
    script.observe(2, code="worker-timeout")
    assert [event["count"] for event in script.tick()] == [2]


def test_it_is_updated_when_it_is_surer():
    script = Script()
    script.observe(1)
    script.tick()
    script.observe(1, confidence="proven")
    (updated,) = script.tick()
    assert (updated["type"], updated["confidence"], updated["report"]) == ("updated", "proven", None)
    script.observe(1, confidence="likely")
    assert script.tick() == []


def test_updates_come_at_growing_intervals():
    script = Script()
    script.observe(1)
    script.tick()
    said = []
    for _ in range(4 * 7200):
        said += [script.now - NOW for _ in script.tick(1.0)]
    gaps = [round(later - earlier) for earlier, later in zip(said, said[1:], strict=False)]
    assert tuple(gaps[:6]) == UPDATE_AFTER_S[1:] and set(gaps[6:]) == {UPDATE_AFTER_S[-1]}


def test_a_clock_that_is_set_back_does_not_silence_it():
    script = Script()
    script.observe(1)
    script.tick()
    assert [event["type"] for event in script.tick(-86_400)] == ["updated"]


def test_another_code_is_another_alert():
    script = Script()
    script.observe(1)
    script.tick()
    script.observe(1, code="deadlock")
    resolved, opened = script.tick()
    assert (resolved["type"], resolved["how"]) == ("resolved", "superseded")
    assert (opened["type"], opened["code"]) == ("opened", "deadlock")


@pytest.mark.parametrize(("confidence", "codes"), [("likely", []), ("proven", ["blocked-loop", "deadlock"])])
def test_what_still_holds_beside_a_verdict_that_is_no_surer_stays(confidence, codes):
    script = Script()
    script.observe(1, code="blocked-loop")
    script.tick()
    script.observe(1, code="deadlock", confidence=confidence, beside=("blocked-loop",))
    assert [event["code"] for event in script.tick()] == codes


def test_a_retry_under_another_frame_stays_in_its_alert():
    script = Script()
    script.observe(1)
    script.tick()
    script.observe(1, function="connect")
    assert script.tick() == []


def test_what_is_over_before_it_was_said_is_never_said():
    script = Script()
    script.observe(1)
    script.alerts.left(Member(1, 1), EXITED)
    assert script.tick() == []


def test_a_pid_that_came_again_is_another_process():
    script = Script()
    script.observe(1)
    script.tick()
    script.alerts.left(Member(1, 2), EXITED)
    assert script.tick() == []


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (report(line=99), True),
        (report(file="/other/lib/python3.9/site-packages/shop/tasks.py"), True),
        (report(confidence="proven"), True),
        (report(function="consume"), False),
        (report(file="/srv/shop/orders.py"), False),
        (report(remote="10.0.0.8:6379"), False),
        (report(code="peer-silent"), False),
    ],
)
def test_the_fingerprint_names_the_fault(other, same):
    assert (fingerprint(report()) == fingerprint(other)) is same


def test_a_verdict_without_thread_or_socket_has_a_fingerprint():
    bare = report()
    bare["verdict"].update(tid=None, fd=None, frame=None)
    assert fingerprint(bare) == ("half-open", "", "")
