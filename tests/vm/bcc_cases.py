"""Inside a machine with headers: do core and bcc see the same of the same processes? One JSON line for each case.

python -m tests.vm.bcc_cases [NAME...]; ends with 0 when all of them agree.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from stucktrace.collectors import lifecycle, tcp, trouble, waits
from stucktrace.collectors.kernel import Kernel, Opened, open_kernel
from stucktrace.errors import StucktraceError
from stucktrace.inspection import inspect_all
from stucktrace.run import Options

from tests.harness import crowd, namespaces, targets
from tests.harness import kernel as shown

DEADLINE_S = 120.0
BUSY = """
import socket, sys, time
port = int(sys.argv[1])
kept = socket.create_connection(("127.0.0.1", port))
kept.setblocking(False)
for line in sys.stdin:
    for _ in range(100):
        try:
            kept.recv(1)
        except BlockingIOError:
            pass
    try:
        socket.create_connection(("127.0.0.1", 1))
    except ConnectionRefusedError:
        pass
    print("done", flush=True)
"""


@contextmanager
def busy() -> Iterator[subprocess.Popen[str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(server.getsockname()[1])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        accepted = server.accept()[0]
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            accepted.close()


def round_of(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


def calls(kernel: Kernel) -> dict[str, Any]:
    """A hundred reads without data, and one refused connection."""
    with busy() as child, waits.watching((child.pid,), kernel) as watch:
        round_of(child)
        found = {fact.call: fact for fact in watch.activity().get(child.pid, ())}
        return {
            "recvfrom": [found["recvfrom"].returns, found["recvfrom"].empty, found["recvfrom"].last_error],
            "connect": [found["connect"].returns, found["connect"].last_error],
            "complete": watch.complete,
            "missing": [entry.because for entry in watch.missing],
        }


def connections(kernel: Kernel) -> dict[str, Any]:
    """The states and the reset of a refused connection."""
    with busy() as child, tcp.watching((child.pid,), kernel) as watch:
        round_of(child)
        events = watch.events().get(child.pid, ())
        return {
            "events": sorted({(event.kind, event.new_state, event.error, event.remote) for event in events}),
            "missing": [entry.what for entry in watch.missing],
        }


def processes(kernel: Kernel) -> dict[str, Any]:
    """A watched process runs a command, which is its child; then it is killed."""
    parent = subprocess.Popen(["sh", "-c", "read line; true & wait; (exit 3); read line"], stdin=subprocess.PIPE)
    assert parent.stdin is not None
    with parent:
        stream = lifecycle.Lifecycle(kernel)
        try:
            stream.watch((parent.pid,))
            parent.stdin.write(b"go\n")
            parent.stdin.flush()
            seen: list[lifecycle.LifeEvent] = []

            def ended(count: int) -> bool:
                seen.extend(stream.events())
                return sum(event.kind == "exit" for event in seen) >= count

            shown.wait_until(lambda: ended(2), deadline_s=DEADLINE_S)
            os.kill(parent.pid, signal.SIGTERM)
            shown.wait_until(lambda: ended(3), deadline_s=DEADLINE_S)
            return {
                "seen": sorted(
                    (event.kind, event.pid == parent.pid, event.status, event.signal, event.sender == os.getpid())
                    for event in seen
                    if event.kind != "exec"
                ),
                "missing": [entry.what for entry in stream.missing],
            }
        finally:
            stream.close()


def reset(kernel: Kernel) -> dict[str, Any]:
    """A reset on an established connection of this process, as a sign of trouble."""
    stream = trouble.Stream(kernel)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            own = socket.create_connection(server.getsockname())
            other = server.accept()[0]
            inode = os.fstat(own.fileno()).st_ino
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            other.close()
            seen: list[trouble.Trouble] = []

            def heard() -> bool:
                seen.extend(event for event in stream.events() if event.inode == inode)
                return any(event.kind == "reset" for event in seen)

            shown.wait_until(heard, deadline_s=DEADLINE_S)
            remote = f"127.0.0.1:{server.getsockname()[1]}"
            own.close()
            return {
                "kinds": sorted({(event.kind, event.error, event.remote == remote) for event in seen}),
                "missing": [entry.what for entry in stream.missing],
            }
    finally:
        stream.close()


def verdict(pid: int, kernel: Kernel) -> list[str]:
    answer = inspect_all((pid,), Options(), lambda: Opened(kernel, ()))[pid]
    if isinstance(answer, StucktraceError):
        return [answer.message]
    assert answer.snapshot.seen.engine == kernel.engine
    said = answer.diagnosis.verdict
    return [said.verdict_class, said.code, said.confidence]


def verdicts(kernel: Kernel) -> dict[str, Any]:
    """What `stucktrace pid` says: storms of calls that only a window tells from work, a deadlock, a cut line, idle loops."""
    with ExitStack() as stack:
        pids = {}
        for program, cases in (
            ("stuck_states.py", ["yields", "polls_for_nothing"]),
            ("stuck_locks.py", ["rlocks_crossed"]),
            ("healthy_loops.py", ["asyncio_idle", "asyncio_ticks"]),
        ):
            hung = stack.enter_context(crowd.start(program, cases))
            pids.update({case: hung[case].target.pid for case in cases})
        found = {name: verdict(pid, kernel) for name, pid in pids.items()}
        # Last, for what is said of it changes with its age.
        pair = stack.enter_context(namespaces.pair())
        server = stack.enter_context(targets.start("accepts.py", pair.there_address, netns=pair.there))
        port = int(server.said)
        client = stack.enter_context(targets.start("cut_off.py", pair.there_address, port, netns=pair.here))
        pair.cut()
        client.go()
        shown.wait_for_unacked(f"{pair.there_address}:{port}", 5, pair.here)
        return {**found, "cut_off": verdict(client.pid, kernel)}


CASES: dict[str, Callable[[Kernel], dict[str, Any]]] = {
    "calls": calls,
    "connections": connections,
    "processes": processes,
    "reset": reset,
    "verdicts": verdicts,
}


def main() -> int:
    names = sys.argv[1:] or list(CASES)
    agreed = True
    kernels = {engine: open_kernel(engine).kernel for engine in ("core", "bcc")}
    for name in names:
        found: dict[str, Any] = {}
        for engine, kernel in kernels.items():
            assert kernel is not None
            began = time.monotonic()
            found[engine] = CASES[name](kernel)
            found[f"{engine}_s"] = round(time.monotonic() - began, 1)
            found[f"{engine}_hooks"] = dict(kernel.hooks)
        same = found["core"] == found["bcc"]
        agreed = agreed and same
        print(json.dumps({"case": name, "same": same, **found}), flush=True)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
