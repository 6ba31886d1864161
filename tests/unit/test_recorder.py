"""The flight recorder: what it keeps, what it gives away, and that it never stands in the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stucktrace import facts, incidents, recording, replay, report
from stucktrace.alerts import RECOVERED, Alerts, Member, Observed
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.incidents import diagnose as diagnose_incident
from stucktrace.diagnosis.model import Budgets, Diagnosis
from stucktrace.facts import Snapshot
from stucktrace.incidents import Incident, code_of
from stucktrace.inspection import Inspection
from stucktrace.node import recorder
from stucktrace.node.recorder import Recorder
from stucktrace.sinks import journal

from tests.unit import snapshots as s

BUDGETS = Budgets()


@pytest.fixture
def said() -> list[str]:
    """What the recorder complained about."""
    return []


@pytest.fixture
def made(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., Recorder]]:
    """Makes recorders that are closed with the test."""
    found: list[Recorder] = []

    def make(directory: Path | None = tmp_path / "journals", minutes: float = 5.0, most_bytes: int = 1 << 30):
        found.append(Recorder(minutes, directory, most_bytes, 86_400, said.append))
        return found[-1]

    yield make
    for each in found:
        each.close(60)


def hung(pid: int = s.PID, age_s: float = 35.0) -> Snapshot:
    """A worker that publishes into a black hole."""
    return s.snapshot(
        s.thread(pid, "recvfrom", fd=7, blocked_s=age_s),
        stacks={pid: ["recv_into socket.py:706", "read_frame amqp/transport.py:294", "<module> /app/main.py:3"]},
        sockets=[s.black_hole(age_s=age_s)],
        process=s.process(pid=pid, argv=("celery", "-b", "amqp://me:secret@broker//")),
    )


def look(target: Recorder, snapshot: Snapshot) -> Diagnosis:
    diagnosis = diagnose(snapshot, BUDGETS)
    target.examined(snapshot, BUDGETS, None, diagnosis)
    return diagnosis


def observed(snapshot: Snapshot, diagnosis: Diagnosis) -> Observed:
    inspection = Inspection(diagnosis, snapshot, timings_ms={"total": 1.0})
    process = snapshot.process
    return Observed(Member(process.pid, process.start_time), snapshot.time - 35, report.build(inspection))


def journals(directory: Path) -> list[list[dict[str, Any]]]:
    """The records of every journal in a directory."""
    torn: list[str] = []
    found = [list(journal.read(path, torn.append)) for path in sorted(directory.iterdir())]
    assert torn == []
    return found


def kinds(records: list[dict[str, Any]]) -> list[str]:
    return [record["record"] for record in records]


def test_the_timeline_is_of_the_processes_and_the_node(made: Callable[..., Recorder], monkeypatch: pytest.MonkeyPatch):
    target, clock = made(None), [1000.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: clock[0])
    target.note(s.NOW, "tcp", "too old", 100)
    clock[0] += 200
    target.note(s.NOW + 200, "tcp", "another's", 101)
    target.note(s.NOW + 200, "node", "the table is full")
    clock[0] += 150
    target.note(5.0, "tcp", "the clock was set back", 100, {"inode": 7})
    assert target.timeline([100]) == (
        {"time": s.NOW + 200, "category": "node", "message": "the table is full", "pid": None},
        {"time": 5.0, "category": "tcp", "message": "the clock was set back", "pid": 100},
    )
    for number in range(recorder.TIMELINE_NOTES):
        target.note(s.NOW, "tcp", str(number), 102)
    assert [entry["message"] for entry in target.timeline([102])] == list(map(str, range(recorder.TIMELINE_NOTES)))


def test_a_journal_grows_with_its_alert(made: Callable[..., Recorder], tmp_path: Path):
    target, alerts = made(), Alerts("node")
    target.note(s.NOW, "tcp", "retransmit", s.PID)
    target.note(s.NOW, "tcp", "a stranger's", 999)
    likely = s.snapshot(s.thread(s.PID, None))
    look(target, likely)
    first = hung(age_s=12.0)
    diagnosis = look(target, first)
    assert diagnosis.verdict.confidence == "likely", "the test needs one that becomes surer"
    alerts.observe(observed(first, diagnosis))
    (opened,) = alerts.tick(s.NOW)
    target.write(opened, alerts.members())

    alerts.observe(observed(first, look(target, first)))
    (updated,) = alerts.tick(s.NOW + 40)
    target.write(updated, alerts.members())

    second = hung(age_s=45.0)
    diagnosis = look(target, second)
    assert diagnosis.verdict.confidence == "proven"
    alerts.observe(observed(second, diagnosis))
    (surer,) = alerts.tick(s.NOW + 60)
    target.write(surer, alerts.members())
    alerts.left(Member(s.PID, 1000), RECOVERED)
    target.note(s.NOW + 70, "look", "it is well", s.PID)
    (resolved,) = alerts.tick(s.NOW + 70)
    target.write(resolved, alerts.members())
    target.close(60)

    (records,) = journals(tmp_path / "journals")
    assert kinds(records) == [
        "header", "note", "examination", "examination",
        "alert", "examination", "examination",
        "alert", "note",
    ]  # fmt: skip
    assert [record["alert"]["type"] for record in records if "alert" in record] == ["opened", "updated", "resolved"]
    header = records[0]
    assert (header["schema"], header["alert"]["id"], header["alert"]["report"]) == (
        recording.SCHEMA,
        opened["id"],
        None,
    )
    back = recording.read_examination(records[3])
    argv = ("celery", "-b", "amqp://(hidden)@broker//")
    assert back.snapshot == replace(first, process=replace(first.process, argv=argv))
    assert (back.budgets, back.said.code, back.said.confidence) == (BUDGETS, "half-open", "likely")
    (path,) = (tmp_path / "journals").iterdir()
    assert b"secret" not in path.read_bytes()
    assert path.name.endswith(f"-half-open-{opened['id'][:8]}.journal")


def opened(*snapshots: Snapshot) -> tuple[dict[str, Any], frozenset[Member]]:
    """The event of an alert that has just been opened, and who is in it."""
    alerts = Alerts("node")
    for snapshot in snapshots:
        alerts.observe(observed(snapshot, diagnose(snapshot, BUDGETS)))
    (event,) = alerts.tick(s.NOW)
    return event, alerts.members()


ABOUT = facts.ConntrackFact(4026531840, 262_144, 262_144, drop=3)
HAPPENED: tuple[Incident, ...] = (
    incidents.WorkerAborted(50, s.NOW - 1, 8.0, 8.5, "gunicorn app --bind redis://me:secret@db"),
    incidents.RestartStorm("gunicorn-master", tuple(incidents.Start(n, s.NOW - n, 1.0, 256) for n in range(9)), 60.0),
    incidents.Growth(incidents.RSS, tuple((s.NOW - n, 1e8 * (60 - n)) for n in range(60)), 1e8, 1e10, "memory.max"),
    incidents.ConntrackPressure(replace(ABOUT, drop=0), ABOUT, 10.0),
)


@pytest.mark.parametrize("incident", HAPPENED, ids=lambda incident: type(incident).__name__)
def test_an_incident_is_diagnosed_again(
    made: Callable[..., Recorder], tmp_path: Path, incident: Incident, capfd: pytest.CaptureFixture[str]
):
    target, snapshot, alerts = made(), hung(), Alerts("node")
    diagnosis = diagnose_incident(snapshot, incident)
    target.examined(snapshot, BUDGETS, incident, diagnosis)
    alerts.observe(observed(snapshot, diagnosis))
    (event,) = alerts.tick(s.NOW)
    target.write(event, alerts.members())
    target.close(60)
    (records,) = journals(tmp_path / "journals")
    assert "secret" not in str(records)
    again = replay.again(recording.read_examination(records[1])).diagnosis
    assert again.verdict.code == diagnosis.verdict.code == code_of(incident)
    if "secret" not in str(incident):
        assert again == diagnosis
    assert capfd.readouterr().err == ""


def test_a_few_of_many(made: Callable[..., Recorder], tmp_path: Path):
    target = made()
    crowd = [hung(pid) for pid in range(100, 120)]
    for _ in range(recorder.LOOKS_OF_A_PROCESS + 2):
        for snapshot in crowd:
            look(target, snapshot)
            while target._looks_waiting > recorder.MOST_LOOKS_WAITING // 2:
                threading.Event().wait(0.001)
    event, members = opened(*crowd)
    target.write(event, members)
    target.close(60)
    (records,) = journals(tmp_path / "journals")
    pids = [record["snapshot"]["process"]["pid"] for record in records[1:]]
    assert len(set(pids)) == recorder.MOST_PROCESSES and event["report"]["process"]["pid"] in pids
    assert len(pids) == recorder.MOST_PROCESSES * recorder.LOOKS_OF_A_PROCESS
    assert target.left_out == 0


def test_what_it_keeps_is_bounded(
    made: Callable[..., Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
):
    monkeypatch.setattr(recorder, "LOOKS_BYTES", 20_000)
    target = made()
    for pid in range(100, 200):
        look(target, hung(pid))
        target.note(s.NOW, "look", "x" * 10_000, pid)
        while target._looks_waiting:
            threading.Event().wait(0.001)
    kept = sum(len(entry.packed) for looks in target._looks.values() for entry in looks)
    assert 0 < kept == target._looks_bytes <= 20_000
    assert (199, 1000) in target._looks and (100, 1000) not in target._looks
    assert len(target.timeline(range(200))[0]["message"]) == recorder.LONGEST_MESSAGE
    for _ in range(2 * recorder.MOST_NOTES):
        target.note(s.NOW, "look", "x", 100)
    assert len(target._notes) == recorder.MOST_NOTES
    assert said == []


def test_a_slow_disk_holds_nobody_up(made: Callable[..., Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    free, stands = threading.Event(), threading.Event()
    real = journal.write

    def slow(*arguments: Any) -> int:
        stands.set()
        assert free.wait(120)
        return real(*arguments)

    monkeypatch.setattr(journal, "write", slow)
    target = made()
    event, members = opened(hung())
    look(target, hung())
    target.write(event, members)
    assert stands.wait(120)
    for _ in range(1000):
        look(target, hung())
    target.write({**event, "id": "f" * 32}, members)
    assert target.left_out == 1000 - recorder.MOST_LOOKS_WAITING
    free.set()
    target.close(60)
    assert len(journals(tmp_path / "journals")) == 2, "an alert is not lost among looks"


def test_a_disk_that_refuses_is_told_once(made: Callable[..., Recorder], tmp_path: Path, said: list[str]):
    there = tmp_path / "there"
    there.write_text("a file where the directory should be")
    target = made(there)
    event, members = opened(hung())
    for number in range(3):
        target.write({**event, "id": f"{number:032x}"}, members)
    while not target._jobs.empty():
        threading.Event().wait(0.001)
    there.unlink()
    target.write({**event, "id": "f" * 32}, members)
    target.close(60)
    (line,) = said
    assert "no journal can be written" in line and "\n" not in line
    assert len(journals(there)) == 1


def test_the_directory_is_bounded(made: Callable[..., Recorder], tmp_path: Path):
    target = made(most_bytes=5_000)
    event, members = opened(hung())
    look(target, hung())
    for number in range(20):
        target.write({**event, "time": event["time"] + number, "id": f"{number:08x}" + "f" * 24}, members)
    target.close(60)
    sizes = [path.stat().st_size for path in (tmp_path / "journals").iterdir()]
    assert sizes and sum(sizes) <= 5_000


def test_without_a_directory_no_look_is_kept(made: Callable[..., Recorder]):
    target = made(None)
    look(target, hung())
    event, members = opened(hung())
    target.write(event, members)
    assert target._thread is None and not target._looks and target._jobs.empty()
