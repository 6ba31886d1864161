"""Inside a machine: one case of each family of hooks and of verdicts, with each engine asked for, as a JSON line each.

python -m tests.vm.cases ENGINE...; ends with 0 when every verdict is the one that the case is staged for. What was used is
taken from `seen.hooks` of the reports, what lacks from `seen.missing`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from tests.harness import agent, command, crowd, kernel, namespaces, targets
from tests.live.test_agent import IDLE
from tests.live.test_conntrack import INVALID, PORT, SERVER, Node, strict

OUTAGE_S = 6.0
"""A connection is called half-open from 5 s on."""
Case = Callable[[str], tuple[str, command.Report]]


def deadlock(engine: str) -> tuple[str, command.Report]:
    with crowd.start("stuck_locks.py", ["rlocks_crossed"]) as programs:
        programs["rlocks_crossed"].wait("futex", 1)
        return "deadlock proven", command.explain(programs["rlocks_crossed"].pid, "--engine", engine)


def idle(engine: str) -> tuple[str, command.Report]:
    """Threads parked in futex, read, accept and short sleeps."""
    with targets.start([sys.executable, "-c", IDLE], ready=False) as target:
        kernel.wait_until(lambda: len(kernel.tids(target.pid)) == 7, "its threads")
        kernel.wait_for_call(target.pid, "futex")
        return "healthy", command.explain(target.pid, "--engine", engine, "--stuck-after", 1)


def spinning(engine: str) -> tuple[str, command.Report]:
    """A storm of sched_yield: only the returns of calls tell it from work."""
    with crowd.start("stuck_states.py", ["yields"]) as programs:
        return "spinning likely", command.explain(programs["yields"].pid, "--engine", engine)


@contextlib.contextmanager
def node() -> Iterator[tuple[Node, namespaces.Pair]]:
    """A client's and a server's namespace; the client's own tracks its connections."""
    with namespaces.pair() as pair:
        made = Node(pair.here, pair.here, pair.there, pair.there_address, pair.here_address)
        with targets.start([sys.executable, "-c", SERVER, pair.there_address], netns=pair.there):
            yield made, pair


def evicted(engine: str) -> tuple[str, command.Report]:
    """A connection in another namespace, whose conntrack entry is gone: its answers are dropped as invalid."""
    with node() as (made, _), contextlib.ExitStack() as stack:
        made.rules("input", INVALID)
        strict(made)
        # What still has its entry tells that the namespace tracks connections.
        client, _ = made.connect(stack), made.connect(stack)
        made.evict(client.port)
        client.send()
        report = command.explain(client.target.pid, "--engine", engine)
        assert report.code != "half-open" or report.socket()["conntrack"] == "absent", report.text()
        return "half-open proven", report


def cut_off(engine: str) -> tuple[str, command.Report]:
    """A connection in another namespace that was cut, while the kernel retransmits."""
    with node() as (made, pair), contextlib.ExitStack() as stack:
        client = made.connect(stack)
        pair.cut(PORT)
        client.send(outage_s=OUTAGE_S)
        return "half-open likely", command.explain(client.target.pid, "--engine", engine)


def agents_stream(engine: str) -> tuple[str, command.Report]:
    """gunicorn kills a worker whose request hangs: said before, with its stack, and after."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=_accept, args=(silent,), daemon=True).start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with agent.gunicorn("--timeout", 15) as server:
            # Programs that bcc compiled know the ids of the initial PID namespace alone.
            beside = os.getpid() if engine == "bcc" else server.master
            with agent.watching(beside, "--engine", engine) as watcher, server.request(f"/fetch?url={url}"):
                opened = watcher.wait_for("opened")
                assert opened["code"] == "peer-silent", opened["summary"]
                killed = watcher.wait_for("opened")
                assert watcher.end() == 0
    return "worker-timeout proven", command.Report(killed["report"])


def _accept(listener: socket.socket) -> None:
    kept = []
    # Until the case closes it.
    with contextlib.suppress(OSError):
        while True:
            kept.append(listener.accept())


def stopped(engine: str) -> tuple[str, command.Report]:
    with targets.start([sys.executable, "-c", IDLE], ready=False) as target:
        kernel.wait_until(lambda: len(kernel.tids(target.pid)) == 7, "its threads")
        os.kill(target.pid, signal.SIGSTOP)
        kernel.wait_for_state(target.pid, "T")
        return "stopped proven", command.explain(target.pid, "--engine", engine)


CASES: dict[str, Case] = {
    "deadlock": deadlock,
    "idle": idle,
    "stopped": stopped,
    "spinning": spinning,
    "conntrack entry evicted": evicted,
    "cut line": cut_off,
    "agent": agents_stream,
}


def doctor(engine: str) -> dict[str, Any]:
    """What doctor says that is used, and what it misses."""
    done = command.run("doctor", "--json")
    abilities = json.loads(done.stdout)
    return {"engine": engine, "case": "doctor", "right": done.status in (0, 1), "doctor": abilities}


def conntrack(name: str, means: str, without: frozenset[str] = frozenset()) -> str:
    """The functions through which the kernel tells of a lost entry by this means; or why it does not."""
    from stucktrace.collectors import conntrack_hooks
    from stucktrace.collectors.ctnetlink import Tuple
    from stucktrace.collectors.kernel import Kernel
    from stucktrace.collectors.libbpf import BpfError

    loopback = socket.inet_aton("127.0.0.1")
    with Kernel(without) as core, socket.create_server(("127.0.0.1", 0)) as server:
        try:
            stream = conntrack_hooks.Stream(core)
        except BpfError as error:
            return f"refused: {error}"
        with contextlib.closing(stream), socket.create_connection(server.getsockname()) as client:
            port, to = client.getsockname()[1], server.getsockname()[1]
            stream.follow([Tuple(loopback, port, loopback, to)])
            namespaces.run(name, "conntrack", "-D", "-p", "tcp", "--orig-port-src", str(port))
            assert select.select([stream.fd], [], [], 60)[0], "the lost entry was not told of"
            assert [event.reason for event in stream.events()] == ["deleted by a program"]
            return stream.means if stream.means.startswith(means) else f"refused: {stream.refused[means]}"


def conntrack_rungs() -> dict[str, Any]:
    line: dict[str, Any] = {"engine": "core", "case": "conntrack, told of by the kernel"}
    name = f"st{os.getpid():x}x9a"
    subprocess.run(["ip", "netns", "attach", name, str(os.getpid())], check=True)
    rules = "add table inet t\nadd chain inet t c { type filter hook output priority 0; }\nadd rule inet t c ct state established accept\n"
    namespaces.run(name, "nft", "-f", "-", text=rules)
    try:
        rungs = {
            "fentry": conntrack(name, "fentry"),
            "kprobe": conntrack(name, "kprobe", frozenset({"fentry"})),
        }
    except Exception:
        return {**line, "right": False, "because": traceback.format_exc()}
    finally:
        subprocess.run(["ip", "netns", "exec", name, "nft", "delete", "table", "inet", "t"], check=True)
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return {**line, "right": True, "rungs": rungs}


def examined(name: str, case: Case, engine: str) -> dict[str, Any]:
    began = time.monotonic()
    line: dict[str, Any] = {"engine": engine, "case": name}
    try:
        wanted, report = case(engine)
    except Exception:
        return {**line, "right": False, "because": traceback.format_exc(), "seconds": round(time.monotonic() - began)}
    verdict = report.verdict
    words = {verdict["class"], verdict["code"], verdict["confidence"]}
    right = set(wanted.split()) <= words and report["seen"]["engine"] == engine
    return {
        **line,
        "right": right,
        "verdict": f"{verdict['code']} {verdict['confidence']}",
        "hooks": report["seen"]["hooks"],
        "missing": [f"{entry['what']}: {entry['because']}" for entry in report["seen"]["missing"]],
        "lost": report["seen"]["lost_records"],
        "seconds": round(time.monotonic() - began),
        **({} if right else {"because": f"wanted {wanted} by engine {engine}, got:\n{report.text()}"}),
    }


def main() -> int:
    wanted = sys.argv[1:]
    engines = [word for word in wanted if word in ("core", "bcc", "none")] or ["core"]
    names = [word for word in wanted if word in CASES] or list(CASES)
    right = True
    for engine in engines:
        for name in names:
            line = examined(name, CASES[name], engine)
            right = right and line["right"]
            print(json.dumps(line), flush=True)
    if not set(wanted) & set(CASES):
        for line in (conntrack_rungs(), doctor(engines[0])):
            right = right and line["right"]
            print(json.dumps(line), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
