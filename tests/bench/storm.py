"""Many workers lose the same server at one moment: how long it takes from each one's threshold to its alert."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

from tests.bench import Row
from tests.bench.agent import cpu_s
from tests.harness import agent

WORKERS = 100
TIMEOUT_S = 30


def run() -> list[Row]:
    silent = socket.create_server(("127.0.0.1", 0), backlog=2 * WORKERS)
    held: list[socket.socket] = []
    threading.Thread(target=lambda: [held.append(silent.accept()[0]) for _ in range(WORKERS)], daemon=True).start()
    with (
        agent.gunicorn("--timeout", TIMEOUT_S, workers=WORKERS) as server,
        agent.watching(server.master, "--engine", "core", "--metrics", "127.0.0.1:9464") as watcher,
    ):
        url = f"/fetch?url=http://127.0.0.1:{silent.getsockname()[1]}/"
        clients = []
        for _ in range(WORKERS):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            clients.append(client)
        before_s = cpu_s(watcher.pid)
        deadline, affected, alerts = time.monotonic() + TIMEOUT_S, 0, 0
        while affected < WORKERS and (event := watcher.read(max(0.0, deadline - time.monotonic()))):
            affected, alerts = max(affected, event["count"]), alerts + (event["type"] == "opened")
        figures = delays(watcher.pid)
        while figures[-1][1] < affected:
            # The figures are a second old at most.
            time.sleep(0.1)
            figures = delays(watcher.pid)
        spent_s = cpu_s(watcher.pid) - before_s
        for client in clients:
            client.close()
    silent.close()
    within = [bound for bound, count in figures if count >= 0.99 * affected]
    half = min(bound for bound, count in figures if count >= 0.5 * affected)
    what = f"{WORKERS} workers wait for one silent server"
    return [
        Row(f"{what}: in the alert before gunicorn's kill", affected, f"of {WORKERS}", "", ""),
        Row(f"{what}: alerts", alerts, "", "", ""),
        Row(f"{what}: threshold to alert, p99 below", 1000 * min(within), "ms", "", "target: 500"),
        Row(f"{what}: threshold to alert, half below", 1000 * half, "ms", "", ""),
        Row(f"{what}: the agent's CPU time", spent_s, "s", "", ""),
    ]


def delays(pid: int) -> list[tuple[float, float]]:
    """The agent's own histogram: (bound in seconds, how many alerts came within it)."""
    inside = ["nsenter", "-t", str(pid), "-n"]
    subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
    page = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9464/metrics', timeout=30).read().decode())"
    read = subprocess.run([*inside, sys.executable, "-c", page], check=True, capture_output=True, text=True).stdout
    samples = (sample for family in text_string_to_metric_families(read) for sample in family.samples)
    return [
        (float(sample.labels["le"]), sample.value)
        for sample in samples
        if sample.name == "stucktrace_alert_delay_seconds_bucket"
    ]
