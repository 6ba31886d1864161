"""Traps in Celery's settings, each a line: what is in force, what it does, and what to write instead.

A rule speaks only of what is known to be in force: what is computed, or could not be read, it leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stucktrace.diagnosis import traps_broker_options
from stucktrace.diagnosis.celery_view import NOT_SET, TRANSPORT, View, add, evidence, number, shown
from stucktrace.facts import ProcessFact
from stucktrace.facts.settings import OK, WARN, Check, SettingFact

FEW_TASKS = 50
"""A child that ends after fewer tasks is replaced so often that the worker may do little else (celery#4809)."""


def checks(settings: Sequence[SettingFact], process: ProcessFact | None = None) -> tuple[Check, ...]:
    """What is to be said of a process's Celery; () where it has none."""
    view = View.of(settings)
    if not view.facts:
        return ()
    rules = (traps_broker_options.checks, _overlay, _pool_limit, _prefetch, _retry)
    return (*(check for rule in rules for check in rule(view)), *_children(view, process))


def _overlay(view: View) -> Iterator[Check]:
    """A setting that a loaded module of the project sets, and that the process does not have: the dict was replaced."""
    lost = [fact for fact in view.facts.values() if fact.source == NOT_SET and fact.others]
    if not lost:
        return
    where, winner = lost[0].others[0][0], view.facts.get(TRANSPORT)
    names = ", ".join(fact.name.rpartition(".")[2] for fact in lost)
    replaced = f"; {winner.source} replaced the whole dict" if winner is not None and winner.source != where else ""
    yield Check(
        "settings-overlay",
        WARN,
        f"{where} sets {names}, and the running process does not have {'it' if len(lost) == 1 else 'them'}{replaced}",
        tuple(f"{fact.name} = {shown(fact.others[0][1])} in {fact.others[0][0]}, not in force" for fact in lost),
        f"{view.spelled(TRANSPORT)} = {{**{view.spelled(TRANSPORT)}, ...}}, or "
        + "; ".join(add(view, fact.name.removeprefix(f"{TRANSPORT}."), fact.others[0][1]) for fact in lost),
    )


def _pool_limit(view: View) -> Iterator[Check]:
    """0 and None mean no pool: a connection is made and closed for each publish (celery.app.base.Celery.pool)."""
    limit = view.given("broker_pool_limit")
    if limit is not None and not limit.value:
        yield Check(
            "no-connection-pool",
            WARN,
            f"broker_pool_limit = {shown(limit.value)}: each publish makes a connection of its own and closes it again",
            evidence(limit),
            f"{view.spelled('broker_pool_limit')} = 10",
        )


def _children(view: View, process: ProcessFact | None) -> Iterator[Check]:
    """A prefork child that is replaced after few tasks: each start costs a fork, imports' copies, new connections."""
    if view.value("worker_pool") not in (None, "prefork", "processes"):
        return
    tasks, memory = view.given("worker_max_tasks_per_child"), view.given("worker_max_memory_per_child")
    count, limit_kb = (number(fact.value) if fact is not None else None for fact in (tasks, memory))
    if tasks is not None and count:
        low = count < FEW_TASKS
        text = f"a child is replaced after {count:g} task{'' if count == 1 else 's'}"
        yield Check(
            "max-tasks-per-child",
            WARN if low else OK,
            f"{text}: the worker spends its time on new processes and connections" if low else text,
            evidence(tasks),
            f"{view.spelled('worker_max_tasks_per_child')} = 1000 (or --max-tasks-per-child 1000)" if low else "",
        )
    mine = process is not None and process.worker.kind in ("celery-main", "celery-child")
    rss_kb = process.rss_bytes / 1024 if process is not None and mine and process.rss_bytes else None
    if memory is not None and limit_kb and rss_kb and limit_kb < rss_kb:
        yield Check(
            "max-memory-per-child",
            WARN,
            f"worker_max_memory_per_child = {limit_kb:g} kB, and this process has {rss_kb:.0f} kB already: a child is "
            "replaced after every task",
            evidence(memory),
            f"{view.spelled('worker_max_memory_per_child')} = {round(4 * rss_kb, -4):.0f}",
        )


def _prefetch(view: View) -> Iterator[Check]:
    multiplier = view.given("worker_prefetch_multiplier")
    if multiplier is not None and number(multiplier.value) == 0:
        yield Check(
            "prefetch-unlimited",
            WARN,
            "worker_prefetch_multiplier = 0: one worker takes the whole queue, and the others see none of it",
            evidence(multiplier),
            f"{view.spelled('worker_prefetch_multiplier')} = 1",
        )


def _retry(view: View) -> Iterator[Check]:
    retry = view.given("broker_connection_retry")
    if retry is not None and retry.value is False:
        yield Check(
            "no-connection-retry",
            WARN,
            "broker_connection_retry = False: a worker that loses its broker once ends",
            evidence(retry),
            f"{view.spelled('broker_connection_retry')} = True",
        )
