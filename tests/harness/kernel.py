"""Waiting for what the kernel shows, never for a time to pass."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

DEADLINE_S = 90.0
POLL_S = 0.05

T = TypeVar("T")

# The calls that tests wait for, by their number in /proc/PID/task/TID/syscall (x86-64).
CALLS = {
    "read": 0, "write": 1, "poll": 7, "select": 23, "nanosleep": 35, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45,
    "sendmsg": 46, "recvmsg": 47, "wait4": 61, "fcntl": 72, "flock": 73, "futex": 202, "clock_nanosleep": 230, "epoll_wait": 232,
    "rt_sigtimedwait": 128, "waitid": 247, "openat": 257, "pselect6": 270, "ppoll": 271, "epoll_pwait": 281, "accept4": 288,
}  # fmt: skip


class NeverHappened(AssertionError):
    """What the test waited for did not come before the deadline."""


def wait_until(condition: Callable[[], T], what: str = "", deadline_s: float = DEADLINE_S) -> T:
    """The first true value of `condition`, polled; OSErrors count as "not yet"."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            value = condition()
        except OSError:
            value = None  # type: ignore[assignment]
        if value:
            return value
        if time.monotonic() > end:
            raise NeverHappened(f"not within {deadline_s:.0f} s: {what or condition}")
        time.sleep(POLL_S)


def stat(pid: int, tid: int | None = None) -> tuple[str, int]:
    """(state letter, ppid) of a thread."""
    text = Path(f"/proc/{pid}/task/{tid or pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1])


def state(pid: int, tid: int | None = None) -> str:
    return stat(pid, tid)[0]


def alive(pid: int) -> bool:
    """Running or sleeping, not a zombie."""
    try:
        return state(pid) not in "ZX"
    except OSError:
        return False


def call(pid: int, tid: int | None = None) -> tuple[int, tuple[int, ...]] | None:
    """(number, arguments) of the call that a sleeping thread is in."""
    words = Path(f"/proc/{pid}/task/{tid or pid}/syscall").read_text().split()
    if not words or words[0] in ("running", "-1"):
        return None
    return int(words[0]), tuple(int(word, 16) for word in words[1:7])


def in_call(pid: int, *names: str, tid: int | None = None) -> bool:
    """The thread sleeps inside one of these calls."""
    now = call(pid, tid)
    return now is not None and now[0] in {CALLS[name] for name in names} and state(pid, tid) in "SD"


def wait_for_call(pid: int, *names: str, tid: int | None = None, deadline_s: float = DEADLINE_S) -> None:
    wait_until(lambda: in_call(pid, *names, tid=tid), f"{pid}/{tid or pid} in {names}", deadline_s)


def wait_for_state(pid: int, letter: str, tid: int | None = None, deadline_s: float = DEADLINE_S) -> None:
    wait_until(lambda: state(pid, tid) == letter, f"{pid} in state {letter}", deadline_s)


def tids(pid: int) -> list[int]:
    return sorted(int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir())


def children(pid: int) -> list[int]:
    found: set[int] = set()
    for tid in tids(pid):
        found.update(map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split()))
    return sorted(found)


def wait_for_children(pid: int, count: int, deadline_s: float = DEADLINE_S) -> list[int]:
    wait_until(lambda: len(children(pid)) >= count, f"{count} children of {pid}", deadline_s)
    return children(pid)


def asleep_s(pid: int, tid: int | None = None) -> float:
    """How long ago a thread was last on a CPU, by the scheduler's clock: that is when it went to sleep.

    Each CPU has its own such clock, and busy ones drift apart by a second in some hours. So "now" is read from that of the
    thread's last CPU: a thread that just woke there has its own mark set to now.
    """
    task = Path(f"/proc/{pid}/task/{tid or pid}")
    allowed = os.sched_getaffinity(0)
    try:
        while True:
            cpu = _last_cpu(task)
            os.sched_setaffinity(0, {cpu})
            time.sleep(0.001)
            now_ms, left_ms = _last_on_cpu_ms(Path("/proc/thread-self/sched")), _last_on_cpu_ms(task / "sched")
            if _last_cpu(task) == cpu:
                return (now_ms - left_ms) / 1000
    finally:
        os.sched_setaffinity(0, allowed)


def _last_cpu(task: Path) -> int:
    return int((task / "stat").read_text().rpartition(")")[2].split()[36])


def _last_on_cpu_ms(path: Path) -> float:
    mark = re.search(r"se\.exec_start\s*:\s*([\d.]+)", path.read_text())
    assert mark, f"no se.exec_start in {path}"
    return float(mark.group(1))


def sockets(netns: str | None = None) -> list[dict[str, str]]:
    """`ss` as dicts: state, recvq, sendq, local, remote, rest; in a network namespace when one is named."""
    command = ["ss", "-tinaoeOH"]
    if netns:
        command = ["ip", "netns", "exec", netns, *command]
    rows = []
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        words = line.split(None, 5)
        if len(words) >= 5:
            rows.append(dict(zip(("state", "recvq", "sendq", "local", "remote", "rest"), [*words, ""], strict=False)))
    return rows


def socket_inode(pid: int, fd: int) -> int:
    link = str(Path(f"/proc/{pid}/fd/{fd}").readlink())
    return int(link.removeprefix("socket:[").removesuffix("]"))


def wait_for_unacked(remote: str, seconds: float, netns: str | None = None, deadline_s: float = 120) -> None:
    """Data to `remote` ("address:port") has been without an ACK for so long, by the socket's own clocks."""

    def long_enough() -> bool:
        for row in sockets(netns):
            if row["remote"] == remote and "unacked:" in row["rest"]:
                last_send = re.search(r"lastsnd:(\d+)", row["rest"])
                backoff = re.search(r"backoff:(\d+)", row["rest"])
                rto = re.search(r"\brto:([\d.]+)", row["rest"])
                # The last retransmission's age and the timeouts before it: the last ACK may be older than what was sent.
                if last_send and backoff and rto:
                    waited_ms = float(rto.group(1)) * (1 - 0.5 ** int(backoff.group(1)))
                    if int(last_send.group(1)) + waited_ms >= seconds * 1000:
                        return True
        return False

    wait_until(long_enough, f"{seconds} s without an ACK from {remote}", deadline_s)


def wait_for_silence(remote: str, seconds: float, netns: str | None = None, deadline_s: float = 120) -> None:
    """Nothing came from `remote` ("address:port") for so long, and nothing went there, by the socket's own clocks."""

    def long_enough() -> bool:
        ages = [
            [int(age) for age in re.findall(r"last(?:snd|rcv):(\d+)", row["rest"])]
            for row in sockets(netns)
            if row["remote"] == remote
        ]
        return any(len(both) == 2 and min(both) >= seconds * 1000 for both in ages)

    wait_until(long_enough, f"{seconds} s without data from and to {remote}", deadline_s)
