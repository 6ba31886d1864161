"""`stucktrace record` and `stucktrace replay`: a journal gives the verdict, the evidence and the status of the live look."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
from stucktrace.sinks import journal

from tests.harness import brokers, command, crowd, gunicorn, kernel, targets

pytestmark = pytest.mark.xdist_group("redis")


def recorded(pid: int, path: Path, *options: str | int) -> tuple[command.Result, list[command.Report]]:
    """What `record` said, and the reports of the replay."""
    said = command.run("record", pid, "-o", path, *options)
    replayed = command.run("replay", path, "--json")
    assert replayed.stderr == "", replayed.stderr
    assert replayed.status == said.status, (said, replayed)
    reports = [command.Report(json.loads(line)) for line in replayed.stdout.splitlines()]
    for report in reports:
        command.validator().validate(report)
    return said, reports


def records(path: Path) -> list[journal.Json]:
    torn: list[str] = []
    found = list(journal.read(path, torn.append))
    assert torn == []
    return found


def assert_the_same(said: command.Result, report: command.Report, live: command.Report) -> None:
    """The replayed report says what `record` said, and argues as a live one does."""
    pid = live["process"]["pid"]
    assert f"pid {pid}: {report.code} ({report.confidence}): {report.summary}\n" in said.stdout
    assert (report.code, report.verdict["tid"], report.verdict["fd"]) == (
        live.code,
        live.verdict["tid"],
        live.verdict["fd"],
    )
    assert [(line["source"], line["what"]) for line in report.verdict["evidence"]] == [
        (line["source"], line["what"]) for line in live.verdict["evidence"]
    ]
    assert report["threads"][0]["python"] == live["threads"][0]["python"]
    assert report["host"] == live["host"] and report["process"]["argv"] == live["process"]["argv"]


@pytest.mark.parametrize("engine", ["auto", "none"])
def test_a_deadlock(tmp_path: Path, engine: str):
    with crowd.start("stuck_locks.py", ["rlocks_crossed"]) as programs:
        target = programs["rlocks_crossed"]
        target.wait("futex")
        said, (report,) = recorded(target.pid, tmp_path / "a", "--engine", engine)
        live = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert said.status == 1
    assert_the_same(said, report, live)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    page = command.run("replay", tmp_path / "a")
    assert page.status == 1 and "deadlock (proven)" in page.stdout


def test_a_half_open_connection_over_a_while(redis: brokers.Broker, tmp_path: Path):
    with (
        redis.client() as broker,
        targets.start("clients.py", "redis_counter", broker.url, netns=broker.pair.here) as target,
    ):
        broker.cut()
        kernel.wait_for_unacked(f"{broker.address}:{broker.port}", 10, broker.pair.here)
        said, reports = recorded(target.pid, tmp_path / "a", "--for", 4)
        live = command.check(target.pid, "half-open")
    assert said.status == 1 and len(reports) >= 2
    assert {report.code for report in reports} == {"half-open"}
    assert_the_same(said, reports[-1], live)
    ages = [report.outage_s() for report in reports]
    assert ages == sorted(ages) and ages[0] < ages[-1]
    page = command.run("replay", tmp_path / "a")
    assert page.stdout.count("Evidence") == 1 and "still half-open" in page.stdout
    assert command.run("replay", tmp_path / "a", "-v").stdout.count("Evidence") == len(reports)


def test_a_healthy_master_with_its_workers(tmp_path: Path):
    with gunicorn.serve(workers=2) as server:
        said, (report,) = recorded(server.master, tmp_path / "a")
        live = command.check(server.master, "idle")
    assert said.status == 0
    assert_the_same(said, report, live)
    assert [(child["pid"], child["verdict"]["code"]) for child in report["children"]] == [
        (pid, "idle") for pid in server.workers
    ]


def test_a_verdict_that_has_changed_is_told(tmp_path: Path):
    with crowd.start("stuck_locks.py", ["mutex_twice"]) as programs:
        target = programs["mutex_twice"]
        target.wait("futex")
        recorded(target.pid, tmp_path / "a")
    header, examination = records(tmp_path / "a")
    examination["said"] |= {"code": "idle", "confidence": "likely", "verdict_class": "healthy"}
    journal.write(tmp_path / "b", [journal.pack(header), journal.pack(examination)])
    replayed = command.run("replay", tmp_path / "b")
    assert replayed.status == 1
    assert (
        replayed.stderr.count("\n") == 1
        and "the verdict is now deadlock (proven), and was idle (likely)" in replayed.stderr
    )


def test_no_secret_of_a_command_line_is_recorded(tmp_path: Path):
    with targets.start(
        [sys.executable, "-c", "import time; time.sleep(1e6)", "redis://me:hunter2@db/0"], ready=False
    ) as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep", "nanosleep")
        _, (report,) = recorded(target.pid, tmp_path / "a")
    assert b"hunter2" not in (tmp_path / "a").read_bytes()
    assert report["process"]["argv"][-1] == "redis://(hidden)@db/0"


def test_what_is_there_is_not_replaced_by_chance(tmp_path: Path):
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_text("precious")
    link.symlink_to("/dev/null")
    os.mkfifo(tmp_path / "fifo")
    for path, word, *options in (
        (there, "--force"),
        (link, "no plain file", "--force"),
        (tmp_path / "fifo", "no plain file", "--force"),
        (tmp_path / "no" / "where", "no directory"),
        (there / "below", "Not a directory"),
    ):
        refused = command.run("record", os.getpid(), "-o", path, *options)
        assert refused.status == 2 and word in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert there.read_text() == "precious"
    assert command.run("record", os.getpid(), "-o", there, "--force").status in (0, 1, 4, 5)
    assert records(there)[0]["record"] == "header"


def test_nothing_is_written_of_what_is_gone(tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = command.run("record", gone.pid, "-o", tmp_path / "a")
    assert done.status == 3 and done.stdout == "" and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_one_that_ends_meanwhile(tmp_path: Path):
    target = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert target.stdin is not None
    kernel.wait_for_call(target.pid, "read")
    recorder = subprocess.Popen(
        [command.COMMAND, "record", str(target.pid), "-o", tmp_path / "a", "--for", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        kernel.wait_until(
            lambda: kernel.asleep_s(recorder.pid) > 0.5 and not kernel.children(recorder.pid), "its pause"
        )
        target.communicate(b"\n")
        said, error = recorder.communicate(timeout=60)
    finally:
        for process in (target, recorder):
            process.kill()
            process.wait(60)
    assert (recorder.returncode, error.count("\n")) == (0, 1), error
    assert f"pid {target.pid}: idle" in said
    assert command.run("replay", tmp_path / "a").status == 0


def test_an_interrupt_ends_it_with_what_was_seen(tmp_path: Path):
    with targets.start([sys.executable, "-c", "import time; time.sleep(1e6)"], ready=False) as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep", "nanosleep")
        recorder = subprocess.Popen(
            [command.COMMAND, "record", str(target.pid), "-o", tmp_path / "a", "--for", "3600"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            # Between two looks it sleeps; the helpers of a look are its children.
            kernel.wait_until(
                lambda: kernel.asleep_s(recorder.pid) > 1 and not kernel.children(recorder.pid), "its pause"
            )
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(60) == 0
        finally:
            recorder.kill()
            recorder.wait(60)
        assert recorder.stdout is not None and f"pid {target.pid}: " in recorder.stdout.read()
    assert [record["record"] for record in records(tmp_path / "a")] == ["header", "examination"]


@contextlib.contextmanager
def full_disk(path: Path):
    """A file system of 64 kB."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=True)
    try:
        (path / "fill").write_bytes(b"x" * (60 << 10))
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk(tmp_path: Path):
    with crowd.start("stuck_locks.py", ["mutex_twice"]) as programs, full_disk(tmp_path / "disk"):
        done = command.run("record", programs["mutex_twice"].pid, "-o", tmp_path / "disk" / "a", "--for", 5)
        assert done.status == 3 and "No space left" in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert os.listdir(tmp_path / "disk") == ["fill"]


def test_what_is_no_journal(tmp_path: Path):
    path = tmp_path / "a"
    for content in (b"", b"\0" * 100, journal.MAGIC):
        path.write_bytes(content)
        done = command.run("replay", path)
        assert done.status == 3 and "not a stucktrace journal" in done.stderr and done.stderr.count("\n") == 1
    header = {"record": "header", "schema": "stucktrace.journal/1", "alert": None}
    for strange in (
        [],
        [{"record": "note"}],
        [header],
        [{**header, "schema": "stucktrace.journal/2"}],
        [{**header, "alert": {"time": "yesterday"}}],
        [header, {"record": "examination", "snapshot": {"time": "now"}}],
        [header, {"record": 7}, {"record": "note", "time": 1e300, "pid": "x"}],
    ):
        journal.write(path, map(msgpack.packb, strange))
        done = command.run("replay", path)
        assert done.status == 3 and done.stderr.count("\n") == 1 and "internal error" not in done.stderr, done.stderr


def test_a_torn_journal_gives_what_is_whole(tmp_path: Path):
    with crowd.start("stuck_locks.py", ["mutex_twice"]) as programs:
        target = programs["mutex_twice"]
        target.wait("futex")
        _, reports = recorded(target.pid, tmp_path / "a", "--for", 6)
    os.truncate(tmp_path / "a", (tmp_path / "a").stat().st_size - 1)
    torn = command.run("replay", tmp_path / "a", "--json")
    assert torn.status == 1 and torn.stdout.count("\n") == len(reports) - 1
    assert torn.stderr.count("\n") == 1 and f"torn behind {len(reports)} whole records" in torn.stderr


WRITER = """
import sys
from pathlib import Path
from stucktrace.sinks import journal
payload = journal.pack({"fill": bytes(range(256)) * 4096})
while True:
    for number in range(4):
        journal.write(Path(sys.argv[1]) / journal.name(number, "deadlock", "a" * 8), [payload] * 4)
"""


def test_a_writer_that_is_killed_leaves_no_half_journal(tmp_path: Path):
    for round_ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path]) as writer:
            kernel.wait_until(lambda: len(list(tmp_path.glob("stucktrace-*"))) == 4, "it writes")
            # Any moment will do: the rounds differ.
            time.sleep(0.01 * round_)
            writer.kill()
        for path in tmp_path.glob("stucktrace-*"):
            assert len(records(path)) == 4
    journal.prune(tmp_path, 1 << 30, 86_400 * 365 * 100)
    assert len(os.listdir(tmp_path)) == 4, os.listdir(tmp_path)
