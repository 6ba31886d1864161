"""How much of a gunicorn application's throughput is left with the agent on, beside strace and py-spy on the same work.

Runs with and without alternate, so that the machine's moods fall on both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import Row
from tests.harness import agent, kernel

WORKERS, CLIENTS = 2, 4
SLICE_S = 4.0
PAIRS = 7
REQUEST = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def requests_per_s(port: int) -> float:
    """With as many clients at a time, each waiting for its answer."""
    ends, counts = time.monotonic() + SLICE_S, [0] * CLIENTS

    def ask(number: int) -> None:
        while time.monotonic() < ends:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(REQUEST)
                while client.recv(4096):
                    pass
            counts[number] += 1

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sum(counts) / SLICE_S


def traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@contextlib.contextmanager
def beside(worker: int, *command: str) -> Iterator[None]:
    """Another tool at work on the same processes: the kernel shows that it traces a worker, if only now and then."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        kernel.wait_until(lambda: process.poll() is not None or traced(worker), f"{command[0]} at work")
        assert process.poll() is None, command
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def run() -> list[Row]:
    pyspy = os.path.join(os.path.dirname(sys.executable), "py-spy")
    with agent.gunicorn("--timeout", 30, workers=WORKERS) as server:
        requests_per_s(server.port)
        shares = []
        for _ in range(PAIRS):
            bare = requests_per_s(server.port)
            with agent.watching(server.master, "--engine", "core"):
                shares.append(requests_per_s(server.port) / bare)
        bare = requests_per_s(server.port)
        pids = [word for pid in (server.master, *server.workers) for word in ("-p", str(pid))]
        with beside(server.workers[0], "strace", "-f", "-o", "/dev/null", *pids):
            strace = requests_per_s(server.port) / bare
        profile = ["-r", "100", "-d", "3600", "-f", "raw", "-o", "/dev/null"]
        with beside(server.workers[0], pyspy, "record", "--subprocesses", "-p", str(server.master), *profile):
            record = requests_per_s(server.port) / bare
    return [
        Row(
            f"gunicorn, {WORKERS} sync workers under load: throughput with the agent",
            100 * statistics.median(shares),
            "% of bare",
            f"strace -f {100 * strace:.1f}, py-spy record {100 * record:.1f}",
            f"target: 99; {PAIRS} pairs, {100 * min(shares):.1f} to {100 * max(shares):.1f}",
        )
    ]
