"""Native frames of real hangs: read without stopping anything, merged with the Python frames, named, and explained."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from stucktrace.collectors import native_stacks, process, threads
from stucktrace.facts import Snapshot

from tests.harness import command, crowd, kernel, targets

pytestmark = pytest.mark.xdist_group("native")

SOURCE = targets.TARGETS / "locking_callback.c"
PAUSE = {"x86_64": 34}.get(os.uname().machine)
engines = pytest.mark.parametrize("engine", ["auto", "none"])


@dataclass(frozen=True)
class Flavour:
    """Under which names the parts of the library are built, and how."""

    crypto: str
    ssl: str
    client: str
    connect: str
    callback: str
    options: tuple[str, ...] = ()
    psycopg2: str = "2.5.4"
    """The version that seems to be installed."""

    def build(self, folder: Path) -> Path:
        folder.mkdir()
        (folder / f"psycopg2-{self.psycopg2}.dist-info").mkdir()
        below: list[str] = []
        for part, name in (("CRYPTO", self.crypto), ("SSL", self.ssl), ("CLIENT", self.client)):
            subprocess.run(
                ["gcc", "-O2", "-shared", "-fPIC", *self.options, f"-DPART_{part}", f"-DCALLBACK={self.callback}",
                 f"-DCONNECT={self.connect}", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-o", folder / name, SOURCE,
                 *below, "-lpthread"],
                check=True,
            )  # fmt: skip
            below.append(str(folder / name))
        return folder / self.client


FLAVOURS = {
    "distribution": Flavour(
        "libcrypto.so.1.0.0", "libssl.so.1.0.0", "libpq.so.5.7", "PQconnectdb", "pq_lockingcallback"
    ),
    "wheel": Flavour(
        "libcrypto-6ea24a39.so.1.0.2",
        "libssl-81ffa89e.so.1.0.2",
        "libpq-e8a033dd.so.5.7",
        "PQconnectdb",
        "quiet",
        ("-s",),
    ),
    "jumping": Flavour(
        "libcrypto.so.1.0.0", "libssl.so.1.0.0", "libpq.so.5.7", "PQconnectdb", "pq_lockingcallback", ("-DTAIL_CALL",)
    ),
    "newer": Flavour(
        "libcrypto.so.1.1", "libssl.so.1.1", "libpq.so.5.15", "PQconnectdb", "pq_lockingcallback", (), "2.9.9"
    ),
    "plain": Flavour("libvault.so.1", "libtunnel.so.1", "libclient.so.1", "open_session", "take_turns"),
}
"""The last one is the same hang in somebody's own libraries."""


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, crowd.Hung]]:
    folder = tmp_path_factory.mktemp("libraries")
    with crowd.start("stuck_native.py", ["compares", "holds"]) as programs, contextlib.ExitStack() as stack:
        for name, flavour in FLAVOURS.items():
            library = str(flavour.build(folder / name))
            python_path = {"PYTHONPATH": str(folder / name)}
            program = targets.start("stuck_native.py", "calls", library, flavour.connect, env=python_path)
            programs[name] = crowd.Hung(stack.enter_context(program))
        yield programs


def native(report: command.Report, inside: int = 0) -> list[tuple[str, str]]:
    """(function, library's file) of the verdict's thread, of the frames with so many Python frames inside of them."""
    (thread,) = (thread for thread in report["threads"] if thread["tid"] == report.verdict["tid"])
    return [
        (frame["function"], frame["file"].rpartition("/")[2]) for frame in thread["native"] if frame["inside"] == inside
    ]


def functions(report: command.Report, inside: int = 0) -> list[str]:
    return [function for function, _ in native(report, inside)]


@engines
def test_a_locking_callback_below_libpq(hung: dict[str, crowd.Hung], engine: str):
    target = hung["distribution"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    chain = ["pthread_mutex_lock", "pq_lockingcallback", "X509_STORE_get_by_subject", "SSL_connect", "PQconnectdb"]
    assert [function for function in functions(report) if function in chain] == chain
    assert report["seen"]["paused_at_most_s"] == 0
    assert "unwound" in report["seen"]["hooks"]["native"]
    story = report.verdict["story"]
    assert "psycopg/psycopg2#290" in story
    assert "OpenSSL 1.0.0" in story
    assert "PostgreSQL 9.4" in story
    assert "This is the psycopg2 hang" in story
    assert "psycopg2 2.5.4" in story
    assert [issue["link"] for issue in report.verdict["known_issues"]] == ["psycopg/psycopg2#290"]
    assert "What happened" in report.text()


@engines
def test_the_same_in_a_stripped_wheel(hung: dict[str, crowd.Hung], engine: str):
    """The callback has no name there: that OpenSSL calls a function of libpq which locks tells what it is."""
    target = hung["wheel"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert "quiet" not in functions(report)
    assert ("PQconnectdb", "libpq-e8a033dd.so.5.7") in native(report)
    assert "psycopg/psycopg2#290" in report.verdict["story"]
    assert "OpenSSL 1.0.2" in report.verdict["story"]


@engines
def test_the_same_without_a_frame_of_the_callback(hung: dict[str, crowd.Hung], engine: str):
    """OpenSSL 1.0 has no locks of its own: a mutex that it seems to take itself was taken in a callback."""
    target = hung["jumping"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert "pq_lockingcallback" not in functions(report)
    assert "psycopg/psycopg2#290" in report.verdict["story"]


@engines
def test_the_same_with_versions_that_cannot_have_that_fault(hung: dict[str, crowd.Hung], engine: str):
    target = hung["newer"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert "same shape" in report.verdict["story"]
    assert "rule that fault out" in report.verdict["story"]
    assert "OpenSSL 1.1" in report.verdict["story"]
    assert report.verdict["known_issues"] == []


@engines
def test_the_same_hang_in_other_libraries(hung: dict[str, crowd.Hung], engine: str):
    target = hung["plain"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", "--engine", engine, confidence="proven")
    assert {"pthread_mutex_lock", "take_turns", "open_session"} <= set(functions(report))
    assert report.verdict["story"] is None


def test_c_code_between_python_frames(hung: dict[str, crowd.Hung]):
    target = hung["compares"]
    target.wait("futex")
    report = command.check(target.pid, "deadlock", confidence="proven")
    (thread,) = report["threads"]
    assert [frame["function"].rpartition(".")[2] for frame in thread["python"]] == [
        "lock_twice", "order", "compares", "<module>"
    ]  # fmt: skip
    assert "pthread_mutex_lock" in functions(report)
    between = [frame for frame in thread["native"] if "/libc" in frame["file"] and frame["inside"] == 2]
    assert between, thread["native"]
    assert all(frame["inside"] in (0, 2) for frame in thread["native"])


@engines
def test_where_the_holder_is(hung: dict[str, crowd.Hung], engine: str):
    target = hung["holds"]
    waiter, holder = target.words[1:]
    target.wait("futex", 6, [waiter])
    target.wait("poll", 6, [holder])
    report = command.check(target.pid, "lock-held", "--engine", engine, "--stuck-after", 5)
    assert report.verdict["tid"] == waiter
    where = [line["text"] for line in report.verdict["evidence"] if line["source"] == "native stack"]
    assert any(str(holder) in text and "its holder" in text and "is in poll" in text for text in where), where


def snapshot_of(pid: int) -> Snapshot:
    return Snapshot(0.0, process.read_process(pid), threads=threads.collect((pid,), None)[pid])


def test_a_signal_that_interrupted_a_call():
    """The kernel's own frame lies between the handler and what it interrupted."""
    with targets.start("stuck_native.py", "handles") as target:
        kernel.wait_for_call(target.pid, "clock_nanosleep")
        os.kill(target.pid, signal.SIGUSR2)
        kernel.wait_until(lambda: (found := kernel.call(target.pid)) and found[0] == PAUSE, "the handler's pause")
        stacks = native_stacks.collect(snapshot_of(target.pid), (target.pid,), None).stacks
    (stack,) = stacks
    names = [frame.function for frame in stack.frames]
    assert names[0] == "pause"
    assert any(name.startswith("clock_nanosleep") for name in names), names
    assert "sleep" in names


def test_a_thread_that_runs_is_left_to_py_spy():
    """Which stops the target, so only for --native, and the report says for how long."""
    with targets.start("stuck_native.py", "spins") as target:
        report = command.explain(target.pid, "--native", "--sample", 0)
        alone = command.explain(target.pid, "--sample", 0)
    assert report["seen"]["hooks"]["native"] == "py-spy --native"
    assert report["seen"]["paused_at_most_s"] > 0
    assert "stood still" in report.text()
    assert alone["seen"]["paused_at_most_s"] is None
    assert "native" not in alone["seen"]["hooks"]
