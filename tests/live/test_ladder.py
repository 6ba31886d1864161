"""Every rung of the attach ladder gives the same records: all that this kernel has run at once over the same events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

import pytest
from stucktrace.collectors import lifecycle, tcp, trouble, waits
from stucktrace.collectors.kernel import Kernel, open_kernel

from tests.harness.kernel import socket_inode, wait_until
from tests.harness.namespaces import pair
from tests.harness.scripts import running
from tests.live.test_lifecycle import PARENT
from tests.live.test_peers import client, server
from tests.live.test_sockets import in_netns
from tests.live.test_waits import WORKER, assert_exact

RUNGS: Mapping[str, frozenset[str]] = {
    "tp_btf": frozenset(),
    "raw_tp": frozenset({"tp_btf"}),
    "tp_btf, perf buffer": frozenset({"ringbuf"}),
    "raw_tp, perf buffer": frozenset({"tp_btf", "ringbuf"}),
}
"""Name -> what the kernel has to do without."""


@pytest.fixture
def kernels() -> Iterator[dict[str, Kernel]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(Kernel(without)) for name, without in RUNGS.items()}


def means(kernel: Kernel, subject: str) -> str:
    """As `RUNGS` names it; streams alone have a buffer."""
    attached, _, buffer = kernel.hooks[subject].partition(" (")
    return attached.partition("/")[0] + (", " + buffer.rstrip(")") if buffer else "")


def test_process_events(kernels):
    with running(PARENT) as parent, ExitStack() as stack:
        streams = {name: lifecycle.Lifecycle(kernel) for name, kernel in kernels.items()}
        told = {name: [] for name in streams}
        for name, life in streams.items():
            stack.callback(life.close)
            assert means(kernels[name], "lifecycle") == name
            life.watch([parent.pid])
        child = int(parent.tell("exits"))
        for _ in range(3):
            parent.tell("exits")
        killed = int(parent.tell("wait"))
        os.kill(killed, signal.SIGKILL)

        def everything(name: str) -> bool:
            # An exec is anybody's.
            told[name] += [event for event in streams[name].events() if event.kind != "exec"]
            return any((event.kind, event.pid) == ("exit", killed) for event in told[name])

        for name in streams:
            wait_until(lambda name=name: everything(name), f"the end, by {name}")
        first, *others = ([replace(event, time_s=0.0) for event in told[name]] for name in streams)
        assert [event.kind for event in first if event.pid == child] == ["fork", "exit"]
        assert [event.kind for event in first if event.pid == killed] == ["fork", "signal", "exit"]
        assert others == [first] * 3
        assert all(kernel.lost_records() == 0 for kernel in kernels.values())


def test_signs_of_trouble_and_a_window(kernels):
    with (
        pair() as hosts,
        running(server(hosts.there_address, 5672), *in_netns(hosts.there)),
        running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as here,
        ExitStack() as stack,
    ):
        inode = socket_inode(here.pid, here.says["fd"])
        streams = {name: trouble.Stream(kernel) for name, kernel in kernels.items()}
        windows = {name: stack.enter_context(tcp.watching((here.pid,), kernel)) for name, kernel in kernels.items()}
        told = {name: [] for name in streams}
        for name, stream in streams.items():
            stack.callback(stream.close)
            assert means(kernels[name], "trouble") == name
            assert kernels[name].hooks["tcp"].startswith(name.partition(",")[0])
        hosts.cut(5672)
        here.tell("100")

        def retransmits(name: str) -> bool:
            told[name] += [event for event in streams[name].events() if event.inode == inode]
            return len(told[name]) >= 1

        for name in streams:
            wait_until(lambda name=name: retransmits(name), f"a retransmission, by {name}")
        first, *others = (replace(told[name][0], time_s=0.0) for name in streams)
        assert (first.kind, first.count) == ("retransmit", 1)
        assert others == [first] * 3
        # The counts go on while one is read after the other; whose and where to is the same.
        first, *others = (
            replace(next(event for event in window.events()[here.pid] if event.kind == "retransmit"), count=0)
            for window in windows.values()
        )
        assert first.inode == inode
        assert others == [first] * 3


def test_counts_of_calls():
    """Each means alone has the exact counts of test_waits.py, in one window after the other."""
    with_tracefs = 'mount -t tracefs none /sys/kernel/tracing; exec "$0" -m tests.harness.call_rungs'
    out = subprocess.run(
        ["unshare", "--mount", "sh", "-c", with_tracefs, sys.executable],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert told["tp_btf"] == "tp_btf/sys_exit"
    assert told["raw_tp"] == "raw_tp/sys_exit"
    assert told["tracepoint"] == "tracepoint/syscalls"
    assert told["fexit kept"] in (
        "fexit/syscalls",
        "refused: the kernel does not let this process attach to system calls",
    )


def test_without_iterators_hooks_still_serve():
    """Linux 5.4 to 5.7: threads from /proc, and windows and streams by raw tracepoints and perf buffers."""
    opened = open_kernel("core", frozenset({"iter", "tp_btf", "ringbuf", "tracepoint", "fexit"}))
    assert [missing.what for missing in opened.missing] == ["threads and sockets through BPF"]
    assert opened.kernel is not None
    with opened.kernel as kernel, running(WORKER) as script:
        life = lifecycle.Lifecycle(kernel)
        with waits.watching([script.pid], kernel) as watch:
            refused = int(script.tell("go"))
            assert_exact(watch.activity()[script.pid], script.says, refused, script.pid)
            assert watch.complete
        assert kernel.hooks["threads"] == "/proc"
        assert kernel.hooks["waits"] == "raw_tp/sys_exit"
        assert kernel.hooks["lifecycle"].endswith("(perf buffer)")
        life.close()


def test_a_lost_conntrack_entry():
    """By the kernel's functions where they can be hooked (the development kernel refuses), and by ctnetlink."""
    out = subprocess.run(
        [sys.executable, "-m", "tests.harness.conntrack_rungs"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert told["ctnetlink"] == "ctnetlink"
    for rung in ("fentry", "kprobe"):
        assert told[rung].startswith((f"{rung}/nf_ct_delete", "refused: "))
