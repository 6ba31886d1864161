"""What hangs in the soak: each kind begins a hang, keeps it, and ends it, by healing or by killing it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.harness import kernel, namespaces, targets

OWNER = "SOAK"
"""In the environment of everything that is started: whose it is."""


class Hang(Protocol):
    """What is told of a hang as it happens."""

    owner: str

    def lasts(self) -> None:
        """It has begun; returns when it has lasted long enough."""

    def over(self) -> None:
        """It has ended and the process lives on; returns when the agent has seen that."""


@dataclass
class World:
    folder: Path
    pair: namespaces.Pair
    cutting: threading.Lock
    """One cut at a time between the two namespaces."""


Run = Callable[[World, Hang], None]


@dataclass(frozen=True)
class Kind:
    name: str
    codes: tuple[str, ...]
    """Any of these is right."""
    run: Run
    """From before its start until after its end."""
    beside: tuple[str, ...] = ()
    """What may also be told of its processes."""
    lasts_s: float | None = None
    """It ends by itself after about so long."""


def _env(owner: str) -> dict[str, str]:
    return {OWNER: owner}


def _dies(program: str, *args: str) -> Run:
    """A program that hangs from its start until it is killed."""

    def run(world: World, hang: Hang) -> None:
        words = [word.replace("{file}", str(world.folder / hang.owner)) for word in args]
        with targets.start(program, *words, env=_env(hang.owner)):
            hang.lasts()

    return run


@contextlib.contextmanager
def server(world: World, owner: str) -> Iterator[targets.Target]:
    """Answers until it is told not to; `said` is its port."""
    with targets.start("soak_programs.py", "serves", netns=world.pair.there, env=_env(f"{owner}.server")) as target:
        yield target


def _toggle(target: targets.Target) -> None:
    os.kill(target.pid, signal.SIGUSR1)


def _silent(program: str) -> Run:
    """The server stops to answer, and answers again."""

    def run(world: World, hang: Hang) -> None:
        with server(world, hang.owner) as peer:
            address = (world.pair.there_address, peer.said)
            with targets.start(
                "soak_programs.py", program, *address, netns=world.pair.here, env=_env(hang.owner)
            ) as target:
                _toggle(peer)
                kernel.wait_for_call(target.pid, "recvfrom")
                hang.lasts()
                _toggle(peer)
                kernel.wait_until(lambda: not kernel.in_call(target.pid, "recvfrom"), "it goes on")
                hang.over()

    return run


def _half_open(world: World, hang: Hang) -> None:
    """Nothing arrives any more, in both directions, and later does again."""
    with world.cutting, server(world, hang.owner) as peer:
        address = (world.pair.there_address, peer.said)
        with targets.start("soak_programs.py", "asks", *address, netns=world.pair.here, env=_env(hang.owner)) as target:
            kernel.wait_for_call(target.pid, "clock_nanosleep", "recvfrom")
            world.pair.cut(int(peer.said))
            try:
                kernel.wait_for_unacked(f"{address[0]}:{peer.said}", 1, world.pair.here)
                hang.lasts()
            finally:
                world.pair.heal()
            # The kernel tries again at growing intervals only.
            kernel.wait_until(lambda: kernel.in_call(target.pid, "clock_nanosleep"), "it goes on", 300)
            hang.over()


def _stopped(world: World, hang: Hang) -> None:
    with server(world, hang.owner) as peer:
        address = (world.pair.there_address, peer.said)
        with targets.start("soak_programs.py", "asks", *address, netns=world.pair.here, env=_env(hang.owner)) as target:
            os.kill(target.pid, signal.SIGSTOP)
            kernel.wait_for_state(target.pid, "T")
            hang.lasts()
            os.kill(target.pid, signal.SIGCONT)
            hang.over()


LOOP_S = 50.0


def _blocked_loop(world: World, hang: Hang) -> None:
    with targets.start("soak_programs.py", "blocks_its_loop", LOOP_S, env=_env(hang.owner)) as target:
        kernel.wait_for_call(target.pid, "epoll_wait")
        os.kill(target.pid, signal.SIGUSR1)
        kernel.wait_for_call(target.pid, "clock_nanosleep")
        hang.lasts()
        kernel.wait_for_call(target.pid, "epoll_wait", deadline_s=LOOP_S + 60)
        hang.over()


@contextlib.contextmanager
def gunicorn(world: World, owner: str, *options: str) -> Iterator[tuple[targets.Target, str]]:
    """With the web application of the tests, in the client's namespace, and its port."""
    command = [
        sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", "--chdir", str(targets.TARGETS),
        *options, "web_app:application",
    ]  # fmt: skip
    env = {**_env(owner), "PYTHONPATH": str(targets.TARGETS / "untitled")}
    with targets.start(command, ready=False, env=env, netns=world.pair.here) as target:
        kernel.wait_until(lambda: "Booting worker" in target.log(), "its first worker", 180)
        yield target, target.log().partition("http://127.0.0.1:")[2].split()[0]


@contextlib.contextmanager
def _request(world: World, port: str, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """By a client that is no Python process: who waits for a hung server hangs as well."""
    asks = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3 >/dev/null"
    client = subprocess.Popen(["ip", "netns", "exec", world.pair.here, "bash", "-c", asks], start_new_session=True)
    try:
        yield client
    finally:
        for pid in [*targets.descendants(client.pid), client.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        client.wait(60)


def _request_hangs(*options: str) -> Run:
    """A request that waits for a server which answers late."""

    def run(world: World, hang: Hang) -> None:
        with gunicorn(world, hang.owner, *options) as (_, port), server(world, hang.owner) as peer:
            _toggle(peer)
            path = f"/fetch?url=http://{world.pair.there_address}:{peer.said}/"
            with _request(world, port, path) as client:
                kernel.wait_until(
                    lambda: any(
                        row["remote"] == f"{world.pair.there_address}:{peer.said}"
                        for row in kernel.sockets(world.pair.here)
                    ),
                    "the request",
                )
                hang.lasts()
                _toggle(peer)
                client.wait(120)
                hang.over()

    return run


DEADLOCK, POOL, LOST, ORPHANED = ("deadlock",), ("pool-starved",), ("work-lost",), ("orphaned-lock",)
KINDS = (
    Kind("half-open", ("half-open",), _half_open, beside=("peer-silent",)),
    Kind("peer-silent", ("peer-silent",), _silent("asks")),
    Kind("peer-silent-under-a-lock", ("peer-silent", "lock-held"), _silent("asks_under_a_lock")),
    Kind("stopped", ("stopped",), _stopped),
    Kind("blocked-loop", ("blocked-loop",), _blocked_loop, lasts_s=LOOP_S),
    Kind("gunicorn-gthread", ("peer-silent",), _request_hangs("-k", "gthread", "--threads", "2")),
    Kind(
        "gunicorn-sync", ("peer-silent",), _request_hangs("--timeout", "40"),
        beside=("worker-timeout", "restart-storm"), lasts_s=45.0,
    ),
    Kind("mutexes-crossed", DEADLOCK, _dies("stuck_locks.py", "mutexes_crossed")),
    Kind("rlocks-crossed", DEADLOCK, _dies("stuck_locks.py", "rlocks_crossed")),
    Kind("locks-crossed", DEADLOCK, _dies("stuck_locks.py", "locks_crossed")),
    Kind("in-a-handler", DEADLOCK, _dies("stuck_locks.py", "entered_by_a_handler")),
    Kind("lock-of-the-dead", ORPHANED, _dies("stuck_locks.py", "ended_owner")),
    Kind("forked-lock", ORPHANED, _dies("stuck_forks.py", "rlock")),
    Kind("shared-lock-of-the-dead", ORPHANED, _dies("stuck_process_locks.py", "recursive_holder_killed", "fork")),
    Kind("pool-waits-for-itself", POOL, _dies("stuck_pools.py", "every_thread")),
    Kind("connections-lent", POOL, _dies("stuck_connections.py", "in_blocks")),
    Kind("worker-killed", LOST, _dies("stuck_pools.py", "killed_apply")),
    Kind("executor-forked", LOST, _dies("stuck_pools.py", "inherited_executor")),
    Kind("pipe-of-a-stopped-child", ("pipe-stuck",), _dies("stuck_pipes.py", "stopped_reader"), beside=("stopped",)),
    Kind("own-read-end", ("pipe-stuck",), _dies("stuck_pipes.py", "own_read_end")),
    Kind("stale-epoll", ("stale-epoll",), _dies("stuck_loops.py", "stale_epoll_of_asyncio"), beside=("blocked-loop",)),
    Kind("gil-held", ("gil-held",), _dies("stuck_states.py", "holds_the_gil")),
    Kind("vfork", ("uninterruptible",), _dies("stuck_states.py", "vforks")),
    Kind("file-locked-twice", DEADLOCK, _dies("stuck_file_locks.py", "twice", "{file}.lock")),
)  # fmt: skip
