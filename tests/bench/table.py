"""`stucktrace ps` beside 200 workers that idle, of one thread and of several, and beside 100 that are stuck."""

from __future__ import annotations

import contextlib
import statistics
import urllib.request
from collections.abc import Iterator

from tests.bench import Row
from tests.bench.cold import timed
from tests.harness import agent, command, kernel, targets

WORKERS, STUCK = 200, 100
ROUNDS = 5


def look(master: int, *options: str) -> tuple[float, float]:
    """Median (wall, CPU) milliseconds of a table of that gunicorn alone."""
    inside = ["nsenter", "-t", str(master), "-p", "-m", str(command.COMMAND), "ps", *options]
    taken = [timed(inside) for _ in range(ROUNDS)]
    return statistics.median(wall for wall, _ in taken), statistics.median(cpu for _, cpu in taken)


def row(what: str, figures: tuple[float, float], note: str = "") -> Row:
    wall_ms, cpu_ms = figures
    return Row(what, wall_ms, "ms", f"{cpu_ms:,.0f} ms of CPU time", note)


@contextlib.contextmanager
def stuck() -> Iterator[agent.Gunicorn]:
    with (
        targets.start("http_holder.py", "deaf") as holder,
        agent.gunicorn("--timeout", 600, workers=STUCK) as server,
        contextlib.ExitStack() as clients,
    ):
        for _ in server.workers:
            clients.enter_context(server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"))
        for pid in server.workers:
            kernel.wait_for_call(pid, "recvfrom", "connect", "poll")
        yield server


def run() -> list[Row]:
    rows = []
    for options in (("sync",), ("gthread", "--threads", 4)):
        with agent.gunicorn("--timeout", 600, "-k", *options, workers=WORKERS) as server:
            for _ in range(3 * WORKERS):
                # A pool starts its threads when they are first needed.
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}/").read()
            what = f"ps beside {WORKERS} idle {options[0]} workers"
            rows.append(row(what, look(server.master), "target: under 2 s"))
            rows.append(row(f"{what}, --no-verdict", look(server.master, "--no-verdict")))
    with stuck() as server:
        rows.append(row(f"ps beside {STUCK} stuck workers", look(server.master)))
    return rows
