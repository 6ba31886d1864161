"""Whatever happens to stucktrace, and whenever: the target goes on, and nothing of ours stays behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stucktrace.sinks import journal

from tests.harness import command, kernel, namespaces, soak_agent, targets

MOMENTS = 200
BEATS = """
import os, sys, threading, time
held = threading.Lock(); held.acquire()
threading.Thread(target=held.acquire, daemon=True).start()
os.write(int(os.environ["READY_FD"]), b"ready\\n")
beats = open(sys.argv[1], "r+b", buffering=0)
number = 0
while True:
    number += 1
    os.pwrite(beats.fileno(), number.to_bytes(8, "little"), 0)
    time.sleep(0.001)
"""


def _leave_no_process(session: int) -> bool:
    """No process of this session is left but zombies that nobody reaps any more."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                return False
    return True


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_ended_at_any_moment(number: signal.Signals, tmp_path: Path):
    """At 100 random moments of a look with a sampling window and child processes, for each of the two signals."""
    beats = tmp_path / "beats"
    beats.write_bytes(bytes(8))
    # Any moments do; the same ones every time make a failure repeatable.
    moments = random.Random(int(number))
    with targets.start([sys.executable, "-c", BEATS, str(beats)]) as target:
        sessions = []
        for _ in range(MOMENTS // 2):
            inspector = subprocess.Popen(
                [command.COMMAND, "pid", str(target.pid), "--sample", "0.1"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                inspector.wait(moments.uniform(0.0, 0.4))
            except subprocess.TimeoutExpired:
                inspector.send_signal(number)
            ended = inspector.wait(60)
            assert ended in {0, 1, 4, 5, -number}, ended
            sessions.append(inspector.pid)
            # Never stopped nor traced: neither in a moment's state nor in what it keeps doing.
            assert kernel.state(target.pid) in "RSD"
            assert "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text()
            before = int.from_bytes(beats.read_bytes(), "little")
            kernel.wait_until(
                lambda before=before: int.from_bytes(beats.read_bytes(), "little") > before, "the next beat"
            )
        for session in sessions:
            kernel.wait_until(lambda session=session: _leave_no_process(session), "our own children ended")
        assert command.explain(target.pid)["process"]["pid"] == target.pid


def test_ctrl_c_ends_at_once(tmp_path: Path):
    """Not after the sampling window, and without a word."""
    busy = "import os; os.write(int(os.environ['READY_FD']), b'ready\\n')\nwhile True: pass"
    with targets.start([sys.executable, "-c", busy]) as target:
        inspector = subprocess.Popen(
            [command.COMMAND, "pid", str(target.pid), "--sample", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        kernel.wait_for_call(inspector.pid, "poll", "ppoll")
        inspector.send_signal(signal.SIGINT)
        out, err = inspector.communicate(timeout=30)
        assert (inspector.returncode, out, err) == (-signal.SIGINT, b"", b"")
        assert kernel.state(target.pid) in "RS"


def test_native_stack_with_a_kill_in_between(tmp_path: Path):
    """--native is the one thing that stops the target: killed at any moment, the target goes on."""
    beats = tmp_path / "beats"
    beats.write_bytes(bytes(8))
    moments = random.Random(9)
    with targets.start([sys.executable, "-c", BEATS, str(beats)]) as target:
        for _ in range(20):
            inspector = subprocess.Popen(
                [command.COMMAND, "pid", str(target.pid), "--native", "--sample", "0"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                inspector.wait(moments.uniform(0.05, 0.5))
            except subprocess.TimeoutExpired:
                os.kill(inspector.pid, signal.SIGKILL)
            inspector.wait(60)
            kernel.wait_until(lambda: "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text(), "no tracer")
            kernel.wait_until(lambda: kernel.state(target.pid) in "RS", "the target goes on")
            before = int.from_bytes(beats.read_bytes(), "little")
            kernel.wait_until(
                lambda before=before: int.from_bytes(beats.read_bytes(), "little") > before, "the next beat"
            )


@pytest.mark.parametrize(
    "words",
    [
        ("record", "{pid}", "-o", "{file}", "--force"),
        ("amqp", "{pid}", "--for", "30s", "--pcap", "{file}"),
        ("unstick", "{pid}", "--dry-run"),
        ("pid", "{pid}", "--probe"),
    ],
    ids=lambda words: words[0],
)
def test_other_commands_killed_at_any_moment(words: tuple[str, ...], tmp_path: Path):
    """No helper, BPF program, packet socket or stop is left, and what it wrote is whole or not there."""
    file, moments = tmp_path / "file", random.Random(words[0])
    with namespaces.pair() as pair, targets.start("soak_programs.py", "serves", netns=pair.there) as peer:
        asks = ("asks", pair.there_address, peer.said)
        with targets.start("soak_programs.py", *asks, netns=pair.here) as target:
            os.kill(peer.pid, signal.SIGUSR1)
            kernel.wait_for_call(target.pid, "recvfrom")
            packets = Path(f"/proc/{target.pid}/net/packet")
            fds = sorted(os.listdir(f"/proc/{target.pid}/fd"))
            for number in range(3):
                command_line = [word.format(pid=target.pid, file=file) for word in words]
                ours = subprocess.Popen(
                    [command.COMMAND, *command_line],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                if words[0] == "amqp" and number == 0:
                    kernel.wait_until(lambda: packets.read_text().count("\n") > 1, "its packet socket")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    ours.wait(moments.uniform(0.1, 1.2))
                programs = soak_agent.bpf_objects(ours.pid)[1] if ours.poll() is None else set()
                ours.kill()
                ours.wait(60)
                kernel.wait_until(lambda ours=ours: _leave_no_process(ours.pid), "the end of its helpers")
                kernel.wait_until(
                    lambda programs=programs: not programs & soak_agent.loaded("prog"), "the end of its BPF programs"
                )
                kernel.wait_until(lambda: packets.read_text().count("\n") == 1, "the end of its packet socket")
                assert "TracerPid:\t0" in Path(f"/proc/{target.pid}/status").read_text()
                assert kernel.state(target.pid) in "RS" and sorted(os.listdir(f"/proc/{target.pid}/fd")) == fds
                if words[0] == "record" and file.exists():
                    torn: list[str] = []
                    assert list(journal.read(file, torn.append)) and not torn
            os.kill(peer.pid, signal.SIGUSR1)
            kernel.wait_for_call(target.pid, "clock_nanosleep")
