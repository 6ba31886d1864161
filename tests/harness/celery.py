"""A real Celery worker that runs tests/targets/celery_app.py, and tasks for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.harness import kernel, targets
from tests.harness.brokers import Broker

CELERY = [sys.executable, "-m", "celery", "-A", "celery_app"]


@dataclass(frozen=True)
class Worker:
    main: int
    children: tuple[int, ...]
    """The processes of a prefork pool."""
    target: targets.Target
    broker: Broker

    def send(self, task: str, *args: str | int) -> str:
        """Puts a task into the worker's queue, from another process; gives its id."""
        code = f"import celery_app; print(celery_app.app.send_task('celery_app.{task}', args={list(args)!r}).id)"
        done = subprocess.run(
            ["ip", "netns", "exec", self.broker.pair.here, sys.executable, "-c", code],
            cwd=targets.TARGETS, env=environment(self.broker), check=True, timeout=120,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return done.stdout.strip()


def environment(broker: Broker) -> dict[str, str]:
    return {**os.environ, "BROKER_URL": broker.url}


@contextlib.contextmanager
def worker(
    broker: Broker,
    *options: str | int,
    children: int = 2,
    prefix: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Worker]:
    """Yields once the worker has said that it is ready and its pool stands. `children`: 0 for pools without processes.

    `prefix` is put in front of the command, and forks it (agent.ALONE).
    """
    pool = ["--concurrency", str(children or 2), *map(str, options)]
    command = [*CELERY, "worker", "--loglevel", "INFO", "--without-mingle", "--without-gossip", *pool]
    with targets.start(
        command,
        netns=broker.pair.here,
        env={"BROKER_URL": broker.url, **(env or {})},
        cwd=targets.TARGETS,
        prefix=prefix,
        ready=False,
    ) as target:
        kernel.wait_until(lambda: "ready." in target.log(), "the worker is ready")
        main = kernel.wait_for_children(target.pid, 1)[0] if prefix else target.pid
        pids = tuple(kernel.wait_for_children(main, children)) if children else ()
        try:
            yield Worker(main, pids, target, broker)
        finally:
            if prefix:
                # The first process of a namespace ends last, when all others there are gone.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(main, signal.SIGKILL)
                kernel.wait_until(lambda: not kernel.alive(main), "the end of the namespace")
