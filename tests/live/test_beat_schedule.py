"""Two real Celery beats: whether they run one schedule. And what ends the children of a real pool on purpose."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.collectors import beat_schedule, pool_limits, procfs
from stucktrace.collectors.pool_limits import PoolLimits

from tests.harness import brokers, celery, kernel, targets

BEAT = [sys.executable, "-m", "celery", "-A", "celery_app", "beat", "--pidfile="]


@contextlib.contextmanager
def beat(broker: brokers.Broker, *options: str) -> Iterator[beat_schedule.Plan]:
    with targets.start(
        [*BEAT, *options], netns=broker.pair.here, cwd=targets.TARGETS, env={"BROKER_URL": broker.url}, ready=False
    ) as target:  # fmt: skip
        kernel.wait_until(lambda: "Starting" in target.log() or "starting" in target.log(), "it runs")
        kernel.wait_for_call(target.pid, "clock_nanosleep")
        yield beat_schedule.read(target.pid, procfs.read_argv(target.pid))


@pytest.mark.xdist_group("redis")
def test_two_beats_with_one_schedule_file(redis: brokers.Broker, tmp_path: Path):
    began = time.time()
    with redis.client() as broker:
        first, second, third = (str(tmp_path / name) for name in ("one", "one", "other"))
        with (
            beat(broker, "-s", first) as older,
            beat(broker, "-s", second) as younger,
            beat(broker, "-s", third) as else_,
        ):
            shared = beat_schedule.same(older, younger, began)
            assert shared is not None and shared[0] == first
            assert beat_schedule.same(older, else_, began) is None


@pytest.mark.xdist_group("redis")
@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (("--max-tasks-per-child=7", "--max-memory-per-child=5000000"), PoolLimits(7, 5_000_000)),
        ((), PoolLimits(None, None)),
    ],
)
def test_the_limits_of_a_pool(redis: brokers.Broker, options: tuple[str, ...], limits: PoolLimits):
    with redis.client() as broker, celery.worker(broker, *options, children=1) as worker:
        (child,) = worker.children
        kernel.wait_for_call(child, "read")
        assert pool_limits.read(child) == limits
        assert pool_limits.read(worker.main) is None
