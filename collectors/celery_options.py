"""What a Celery worker's command line sets, under the names that the same settings have in Celery's configuration.

Source: `celery worker --help` of Celery 4.4 to 5.7. A command line wins over the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stucktrace.collectors import command_line, pool_limits
from stucktrace.facts import SettingFact
from stucktrace.facts.settings import MEMORY, Value

SUBJECT = "celery"
SOURCE = "command line"
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "worker_pool": ("-P", "--pool"),
    "worker_concurrency": ("-c", "--concurrency"),
    "worker_autoscaler": ("--autoscale",),
    "worker_prefetch_multiplier": ("--prefetch-multiplier",),
    "worker_max_tasks_per_child": ("--max-tasks-per-child",),
    "worker_max_memory_per_child": ("--max-memory-per-child",),
    "task_soft_time_limit": ("--soft-time-limit",),
    "task_time_limit": ("--time-limit",),
    "optimization": ("-O", "--optimization"),
}
_FLAGS: Mapping[str, str] = {
    "without_heartbeat": "--without-heartbeat",
    "without_gossip": "--without-gossip",
    "without_mingle": "--without-mingle",
}
LIMITS = ("worker_max_tasks_per_child", "worker_max_memory_per_child")


def collect(argv: Sequence[str]) -> tuple[SettingFact, ...]:
    """What stands on the command line of a worker's main process; nothing for another program."""
    line = command_line.read(argv)
    if line.program != command_line.CELERY_WORKER:
        return ()
    found = [
        SettingFact(SUBJECT, name, _typed(given), SOURCE)
        for name, spellings in OPTIONS.items()
        if (given := command_line.option(line.arguments, *spellings)) is not None
    ]
    found += [SettingFact(SUBJECT, name, True, SOURCE) for name, flag in _FLAGS.items() if flag in line.arguments]
    return tuple(found)


def limits_in_force(child: int) -> tuple[SettingFact, ...]:
    """What ends this child of a pool of processes, from its own memory; () where it cannot be read."""
    limits = pool_limits.read(child)
    if limits is None:
        return ()
    values = zip(LIMITS, (limits.tasks, limits.memory_kb), strict=True)
    return tuple(SettingFact(SUBJECT, name, value, MEMORY, in_force=True) for name, value in values)


def _typed(given: str) -> Value:
    number = command_line.number(given)
    return given if number is None else int(number) if number == int(number) else number
