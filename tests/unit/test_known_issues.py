"""Known issues: evidence and version together, never one alone; and the data itself."""

from __future__ import annotations

import re

import pytest
from stucktrace.diagnosis import diagnose, known_issues
from stucktrace.diagnosis.model import CODES, Budgets, Finding
from stucktrace.facts import WorkerFact

from tests.unit import known_stacks as k
from tests.unit.snapshots import black_hole, lock, process, snapshot, thread


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("2.6", "2.6.1"),
        ("2.6.1", "2.10"),
        ("4.1.0", "4.2"),
        ("4.2.0rc1", "4.2"),
        ("4.2.0a1", "4.2.0b1"),
        ("4.2.0.dev3", "4.2.0a1"),
        ("4.2.0b2", "4.2.0rc1"),
        ("4.2", "4.2.post1"),
        ("4.2.0rc1", "4.2.0rc2"),
        ("3.8.18", "3.11.2"),
        ("9.0", "1!1.0"),
    ],
)
def test_versions_are_ordered(lower: str, higher: str) -> None:
    assert known_issues.key(lower) < known_issues.key(higher)


@pytest.mark.parametrize(
    ("one", "other"), [("4.2", "4.2.0"), ("v1.0", "1.0.0"), ("2.9.9+debian1", "2.9.9"), ("4.2rc1", "4.2.0-rc.1")]
)
def test_versions_that_are_the_same(one: str, other: str) -> None:
    assert known_issues.key(one) == known_issues.key(other)


@pytest.mark.parametrize(
    ("version", "bounds", "within"),
    [
        ("4.1.0", ">=4.1.0,<4.2.0", True),
        ("4.1.3", ">=4.1.0,<4.2.0", True),
        ("4.2.0", ">=4.1.0,<4.2.0", False),
        ("4.0.2", ">=4.1.0, <4.2.0", False),
        ("1.0", "", True),
        ("1.0", "==1.0.0", True),
        ("1.0", "!=1.0", False),
        ("1.0", "~=1.0", False),
        ("garbage", "<2", True),
    ],
)
def test_bounds(version: str, bounds: str, within: bool) -> None:
    assert known_issues.within(version, bounds) is within


def links(snap, code: str) -> list[str]:  # type: ignore[no-untyped-def]
    (finding,) = known_issues.attach(snap, [Finding(code, "proven", "", tid=100)])
    return [issue.link for issue in finding.known_issues]


def retrying(**packages: str):  # type: ignore[no-untyped-def]
    return snapshot(thread(100, "clock_nanosleep"), stacks={100: k.RETRY_CONNECT}, process=process(packages=packages))


def test_evidence_and_version_together() -> None:
    assert links(retrying(kombu="4.1.0"), "connect-failing") == ["celery/celery#4296"]
    assert links(retrying(kombu="5.4.2"), "connect-failing") == ["celery/celery#6911"]
    assert links(retrying(), "connect-failing") == [], "the version is not known"
    assert links(retrying(kombu="4.1.0"), "half-open") == [], "another code"
    sleeping = snapshot(thread(100), stacks={100: k.MAIN}, process=process(packages={"kombu": "4.1.0"}))
    assert links(sleeping, "connect-failing") == [], "no such frame"


@pytest.mark.parametrize(("version", "known"), [("2.6", True), ("2.6.1", False), ("2.9.9", False)])
def test_libpqs_locking_callback(version: str, known: bool) -> None:
    snap = snapshot(
        thread(100),
        stacks={100: ["native pq_lockingcallback libpq.so.5", *k.MAIN]},
        locks=[lock(100, mapping="/usr/lib/libpq.so.5")],
        process=process(packages={"psycopg2-binary": version}),
    )
    assert ("psycopg/psycopg2#290" in links(snap, "deadlock")) is known


def test_the_interpreter_is_a_package_too() -> None:
    def child(version: str):  # type: ignore[no-untyped-def]
        return snapshot(thread(100), stacks={100: k.HANDLER}, process=process(python_version=version))

    assert links(child("3.8.10"), "orphaned-lock") == ["python/cpython#50970"]
    assert links(child("3.11.2"), "orphaned-lock") == []


def test_the_verdict_carries_them() -> None:
    snap = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=45),
        stacks={100: k.CELERY_REDIS_READ},
        sockets=[black_hole(remote="10.0.0.3:6379")],
        process=process(
            packages={"celery": "5.4.0", "kombu": "5.4.2", "redis": "5.0.1"}, worker=WorkerFact("celery-main")
        ),
    )
    found = [issue.link for issue in diagnose(snap, Budgets()).verdict.known_issues]
    assert "celery/kombu#490" in found and "celery/celery#9705" in found
    assert "celery/celery#9054" not in found, "fixed in 5.4"


def test_the_data() -> None:
    keys = {"link", "title", "fix", "codes", "frames", "families", "kinds", "mappings", "libraries", "packages", "evidence", "package", "versions"}  # fmt: skip
    seen = set()
    for entry in known_issues.entries():
        assert set(entry) <= keys, entry["link"]
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", entry["link"]), entry["link"]
        assert entry["title"] and entry["fix"]
        assert set(entry["codes"]) <= set(CODES), entry["link"]
        assert "package" in entry or "versions" not in entry, entry["link"]
        for bound in entry.get("versions", "").split(","):
            assert not bound or re.fullmatch(r"(<=|>=|==|!=|<|>)[\w.]+", bound), entry["link"]
        assert entry["link"] not in seen
        seen.add(entry["link"])
