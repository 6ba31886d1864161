"""A conntrack entry that is deleted under a live connection, told of by every means that this kernel has, as JSON: rung -> means.

Run as a program by a test, and inside the virtual machines: there with --full, which fills a table up to a limit that is
the machine's own.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
from pathlib import Path

from stucktrace.collectors import conntrack_hooks
from stucktrace.collectors.conntrack_memory import Lost, Memory
from stucktrace.collectors.kernel import Kernel
from stucktrace.collectors.libbpf import BpfError

from tests.harness import namespaces
from tests.harness.kernel import wait_until
from tests.harness.scripts import Script, running

TRACKED = """
add table inet t
add chain inet t c { type filter hook output priority 0; }
add rule inet t c ct state established accept
"""
SERVER = """
import json, socket, threading
listener = socket.create_server(("0.0.0.0", 9)); kept = []
threading.Thread(target=lambda: [kept.append(listener.accept()) for _ in iter(int, 1)], daemon=True).start()
print(json.dumps({}), flush=True); input()
"""
CLIENT = """
import json, socket, sys
s = socket.create_connection((sys.argv[1], 9)); u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(json.dumps({"port": s.getsockname()[1]}), flush=True)
for line in sys.stdin:
    if line.strip() == "udp":
        for port in range(1000, 1400):
            try: u.sendto(b"x", (sys.argv[1], port))
            except PermissionError: pass
    else: s.sendall(b"x")
    print("done", flush=True)
"""
RUNGS = {"fentry": {"kprobe"}, "kprobe": {"fentry"}, "ctnetlink": {"fentry", "kprobe"}}
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
BUCKETS = Path("/proc/sys/net/netfilter/nf_conntrack_buckets")


def heard(rung: str, here: str, client: Script) -> str:
    """The means by which the loss was heard, or why there is none; AssertionError where it was not heard."""
    lost: list[Lost] = []
    with Kernel(frozenset(RUNGS[rung])) as kernel:
        try:
            hooks = conntrack_hooks.Stream(kernel) if rung != "ctnetlink" else None
        except BpfError as error:
            return f"refused: {error}"
        memory = Memory(lost.append, hooks)
        memory.round({client.pid})
        # With nf_conntrack_events=2 ctnetlink tells nothing of an entry that is older than its listener.
        delete(here)
        client.tell("tcp")
        memory.round({client.pid})
        assert [known.seen for known in memory._connections.values()] != [{}], "its entry is known"
        delete(here)

        def listen() -> bool:
            memory.listen(select.select(memory.fds(), [], [], 1)[0])
            return bool(memory.lost)

        wait_until(listen, f"the loss, by {rung}")
        assert [one.reason for one in lost] == ["deleted by a program" if hooks else ""], lost
        client.tell("tcp")
        wait_until(
            lambda: not (memory.listen(select.select(memory.fds(), [], [], 1)[0]), memory.lost)[1], "it came back"
        )
        memory.close()
        return memory.means


def delete(here: str) -> None:
    subprocess.run(["ip", "netns", "exec", here, "conntrack", "-D", "-p", "tcp"], check=True, capture_output=True)


def full(here: str, client: Script) -> dict[str, int]:
    """In a table that has no room what is not assured is evicted, and then packets are refused."""
    with Kernel() as kernel:
        hooks = conntrack_hooks.Stream(kernel)
        # Room is looked for in a few neighbouring buckets only.
        BUCKETS.write_text("512")
        LIMIT.write_text("20")
        client.tell("udp")
        counts = dict(hooks.counts())
        hooks.close()
        return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    fills = parser.parse_args().full
    with namespaces.pair() as pair, running(SERVER, "ip", "netns", "exec", pair.there):
        subprocess.run(["ip", "netns", "exec", pair.here, "nft", "-f", "-"], input=TRACKED, text=True, check=True)
        source = f"import sys; sys.argv[1:] = [{pair.there_address!r}]\n{CLIENT}"
        with running(source, "ip", "netns", "exec", pair.here) as client:
            print(json.dumps({rung: heard(rung, pair.here, client) for rung in RUNGS}), flush=True)
            if fills:
                counts = full(pair.here, client)
                assert counts["evicted"] > 0 and counts["refused"] > 0, counts
                print(json.dumps(counts))
    sys.exit(0)
