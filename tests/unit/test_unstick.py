"""The last check before a connection is ended, and what is said when it was."""

from __future__ import annotations

from dataclasses import replace

from stucktrace.unstick import Plan, _unheard
from stucktrace.unstick_watch import same_service

from tests.unit.snapshots import black_hole, snapshot
from tests.unit.test_network_probe import RESET, publisher, verdict

DEAD = black_hole(bytes_acked=1000, bytes_received=500)


def test_a_peer_that_is_heard_again_at_the_last_moment() -> None:
    assert _unheard(DEAD, DEAD)
    assert _unheard(DEAD, replace(DEAD, last_ack_s=DEAD.last_ack_s + 0.4))
    for change in (
        {"bytes_acked": 1563},
        {"bytes_received": 508},
        {"last_ack_s": 0.1},
        {"state": "CLOSE"},
        {"local": "10.0.0.1:40001"},
        {"inode": 99},
    ):
        assert not _unheard(DEAD, replace(DEAD, **change)), change
    assert not _unheard(DEAD, None)


def test_a_service_is_told_by_its_port() -> None:
    assert same_service(DEAD, "10.0.0.99:5672")
    assert not same_service(DEAD, "10.0.0.2:6379")


def test_the_plan_says_what_it_costs() -> None:
    process = snapshot().process
    plan = Plan(process, DEAD, verdict(publisher()), "the publish", destroys=True)
    text = "\n".join(plan.lines())
    for word in (DEAD.local, DEAD.remote, "ECONNABORTED", "the publish", "may have arrived"):
        assert word in text
    assert "arrives twice" in "\n".join(replace(plan, destroys=False).lines())
    assert not plan.ended and replace(plan, connection=replace(DEAD, probe=RESET)).ended
