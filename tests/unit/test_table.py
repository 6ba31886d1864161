"""The table of `stucktrace ps`: it fits, it hides nothing that matters, and a stranger's text cannot move a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest
from stucktrace.facts import Container, ProcessFact, Syscall, ThreadFact, WorkerFact, WorkFact
from stucktrace.rows import IDLE, Inside, Row, Verdict, at_rest, doing, ordered
from stucktrace.sinks.table import as_json, call_text, cells_wide, render, summary
from stucktrace.watch import fold

from tests.unit import snapshots

SCHEMA = json.loads(resources.files("stucktrace").joinpath("ps.schema.json").read_text())
STUCK = Verdict("stuck", "half-open", "likely", "nothing it sent is acknowledged", 11)


def process(pid: int, ppid: int = 1, kind: str = "gunicorn-worker", **changed: object) -> ProcessFact:
    fact = ProcessFact(
        pid,
        pid,
        ppid,
        1000,
        "python",
        ("gunicorn",),
        "S",
        age_s=90,
        rss_bytes=24_000_000,
        fd_count=9,
        worker=WorkerFact(kind, "sync"),
    )
    return replace(fact, **changed)  # type: ignore[arg-type]


def row(pid: int, ppid: int = 1, kind: str = "gunicorn-worker", **changed: object) -> Row:
    inside = Inside(pid, "MainThread", "S", "pselect6", 5, "listening", 1.2)
    return replace(Row(process(pid, ppid, kind), threads=1, inside=inside, verdict=IDLE), **changed)  # type: ignore[arg-type]


FAMILY = ordered([row(12, 10), row(30, kind="python"), row(11, 10, verdict=STUCK), row(10, kind="gunicorn-master")])


def test_masters_come_first_with_their_workers_beneath():
    assert [found.pid for found in FAMILY] == [10, 11, 12, 30]
    lines = render(FAMILY)
    assert lines[0].split() == ["PID", "KIND", "AGE", "RSS", "FDS", "IN", "FOR", "VERDICT"]
    assert lines[1].startswith(" 10  gunicorn master") and lines[2].startswith(" 11    gunicorn worker sync")
    assert lines[2].endswith("half-open likely") and lines[3].endswith("  idle")
    assert summary(FAMILY) == "4 processes: 3 idle, 1 half-open"


def test_a_master_that_its_predecessor_started_is_a_master():
    found = ordered([row(20, 10, "gunicorn-master"), row(21, 20), row(10, kind="gunicorn-master"), row(11, 10)])
    assert [(one.pid, one.master) for one in found] == [(10, None), (11, 10), (20, None), (21, 20)]


@pytest.mark.parametrize("width", [24, 40, 60, 79, 80, 100, 132])
def test_it_fits_the_terminal_and_the_verdict_is_whole(width: int):
    busy = row(
        11,
        10,
        inside=Inside(11, "MainThread", "S", "recvfrom", 7, "[2001:db8:85a3::8a2e:370:7334]:5672", 14),
        work=(WorkFact(11, "request", "GET /" + "数据" * 40, age_s=12), WorkFact(12, "request", "GET /b", age_s=1)),
        verdict=STUCK,
    )
    lines = render((*FAMILY, busy), width=width)
    assert all(cells_wide(line) <= width for line in lines), lines
    assert all(line.endswith(("VERDICT", "half-open likely", "idle")) for line in lines), lines
    whole = render([busy])
    assert "[2001:db8:85a3::8a2e:370:7334]:5672" in whole[1] and "12 s +1" in whole[1]


def test_control_characters_of_a_target_are_escaped():
    nasty = "\x1b]0;owned\x07\x1b[2J\n\u202e"
    found = row(
        10,
        inside=Inside(11, nasty, "S", "read", 3, "/tmp/" + nasty, 2),
        work=(WorkFact(10, "task", nasty),),
        verdict=Verdict("stuck", "pipe-stuck", "likely", nasty, 11),
    )
    found = replace(found, process=replace(found.process, container=Container("a" * 64, pod="p" * 36, name=nasty)))
    for colour in (False, True):
        lines = render([found], colour=colour)
        text = "".join(lines).replace("\x1b[31;1m", "").replace("\x1b[1m", "").replace("\x1b[0m", "")
        assert len(lines) == 2 and text.isprintable() and "\u202e" not in text, lines


def test_colour_only_when_asked_for():
    assert "\x1b" not in "".join(render(FAMILY))
    assert render(FAMILY, colour=True)[2].endswith("\x1b[31;1mhalf-open likely\x1b[0m")


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (Inside(1, "", "R", "", None, "", None), "on CPU"),
        (Inside(1, "", "S", "recvfrom", 7, "10.0.0.5:5672", 14), "recvfrom 10.0.0.5:5672"),
        (Inside(1, "", "S", "futex", None, "lock", 180), "futex (lock)"),
        (Inside(1, "", "S", "epoll_wait", 4, "", 1.2), "epoll_wait"),
        (Inside(1, "", "T", "read", 4, "pipe", 1.2), "stopped in read (pipe)"),
        (Inside(1, "", "D", "fsync", 4, "/data/x", 1.2), "uninterruptible in fsync /data/x"),
        (Inside(1, "", "S", "", None, "", 3), "?"),
        (Inside(1, "", "Z", "", None, "", None), "ended"),
    ],
)
def test_what_a_thread_is_inside(inside: Inside, text: str):
    assert call_text(inside) == text


def test_verdicts_that_are_still_to_come():
    waiting = replace(FAMILY[1], verdict=None)
    assert render([waiting], looking=True)[1].endswith("  ...")
    assert render([waiting])[1].endswith("  -")
    assert render([replace(waiting, because="not permitted")], looking=True)[1].endswith("  -")


def test_what_idles_gives_way_on_a_small_screen():
    family = ordered(
        [row(10, kind="gunicorn-master"), *(row(pid, 10) for pid in range(20, 60)), row(70, 10, verdict=STUCK)]
    )
    shown, left_out = fold(family, 5)
    assert [one.pid for one in shown] == [10, 20, 21, 70] and len(left_out) == 38
    assert fold(family, 42) == (list(family), [])
    assert fold(family, 0)[0] == []


def test_the_json_follows_its_schema():
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    bare = Row(ProcessFact(5, 5, 1, 7, "python", ("python", "amqp://u:secret@h/"), "S"), because="not permitted")
    for one in (*FAMILY, bare, row(9, work=(WorkFact(9, "task", "app.add", "id-1", 3.0),))):
        found = json.loads(json.dumps(as_json(one, 1.0)))
        validator.validate(found)
        assert "secret" not in json.dumps(found)


def listening_worker(**changed: object) -> object:
    call = Syscall(270, "pselect6", (8, 0, 0, 0, 0, 0), fds=(5, 6), endless=False, timeout_s=15.0)
    thread = ThreadFact(10, 10, "gunicorn", "S", call, blocked_s=3.0)
    found = snapshots.snapshot(thread, sockets=[snapshots.tcp(5, state="LISTEN", remote="")])
    worker = WorkerFact("gunicorn-worker", "sync", timeout_s=30, last_notify_s=3.0)
    return replace(found, process=replace(found.process, pid=10, worker=worker), **changed)  # type: ignore[arg-type]


def test_only_its_roles_own_wait_is_rest():
    idle = listening_worker()
    assert at_rest(idle, ())
    late = replace(idle.process.worker, last_notify_s=17.0)
    assert not at_rest(replace(idle, process=replace(idle.process, worker=late)), ())
    assert not at_rest(replace(idle, process=replace(idle.process, worker=WorkerFact("python"))), ())
    loop = replace(idle.process.worker, worker_class="uvicorn")
    assert not at_rest(replace(idle, process=replace(idle.process, worker=loop)), ())
    assert not at_rest(replace(idle, process=replace(idle.process, frozen=True)), ())
    assert not at_rest(replace(idle, threads=(replace(idle.threads[0], state="T"),)), ())
    assert not at_rest(replace(idle, sockets=()), ())
    child = replace(
        idle,
        process=replace(idle.process, worker=WorkerFact("celery-child", pool="prefork")),
        threads=(replace(idle.threads[0], syscall=Syscall(0, "read", (7, 0, 4), fd=7)),),
        fds={7: "pipe:[123]"},
    )
    assert at_rest(child, ("pipe:[123]",)) and not at_rest(child, ("pipe:[124]",))


def test_doing_changes_with_any_threads_call():
    idle = listening_worker()
    thread = idle.threads[0]
    longer = replace(thread, blocked_s=9.0, switches=7)
    assert doing(idle) == doing(replace(idle, threads=(longer,)))
    assert doing(idle) != doing(replace(idle, threads=(replace(thread, syscall=Syscall(7, "poll", (8, 0, 0))),)))
    assert doing(replace(idle, threads=(replace(thread, state="R", syscall=None),))) is None


def test_a_threaded_worker_rests_when_its_pool_does():
    idle = listening_worker()
    parked = ThreadFact(11, 11, "python", "S", Syscall(202, "futex", (8, 0x189, 0), endless=True), blocked_s=60.0)
    threaded = replace(idle, threads=(*idle.threads, parked))
    main, pool = ("select", "/usr/lib/python3.11/selectors.py"), ("_worker", "/x/concurrent/futures/thread.py")
    assert at_rest(threaded, (), lambda: (pool, main))
    for innermost in (
        None,
        (),
        (main,),
        (pool,),
        (main, main),
        (main, pool, pool),
        (main, ("_worker", "/app/mine.py")),
    ):
        assert not at_rest(threaded, (), lambda innermost=innermost: innermost)
    timed = replace(parked, syscall=Syscall(202, "futex", (8, 0x189, 0), endless=False))
    receives = replace(parked, syscall=Syscall(45, "recvfrom", (8,), fd=8, endless=True))
    for other in (timed, receives, replace(parked, state="R", syscall=None), replace(parked, state="D")):
        assert not at_rest(replace(threaded, threads=(*idle.threads, other)), (), lambda: (pool, main))
