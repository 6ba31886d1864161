"""Traps in Celery's settings, each a line: what is in force, what it does, and what to write instead.

A rule speaks only of what is known to be in force: what is computed, or could not be read, it leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stucktrace.diagnosis import traps_broker_options
from stucktrace.diagnosis.celery_view import TRANSPORT, View, add, evidence, number, shown
from stucktrace.facts import ProcessFact
from stucktrace.facts.settings import CHANGED_SINCE, DEFAULT, NOT_SET, OK, WARN, Check, SettingFact, Value

FEW_TASKS = 50
"""A child that ends after fewer tasks is replaced so often that the worker may do little else (celery#4809)."""


def checks(settings: Sequence[SettingFact], process: ProcessFact | None = None) -> tuple[Check, ...]:
    """What is to be said of a process's Celery; () where it has none."""
    view = View.of(settings)
    if not view.facts:
        return ()
    rules = (traps_broker_options.checks, _overlay, _pool_limit, _tasks, _prefetch, _retry)
    found = tuple(check for rule in rules for check in rule(view))
    return (*found, *_memory(view, process)) if process is not None else found


def _overlay(view: View) -> Iterator[Check]:
    """`settings-overlay`: a loaded module sets what the running process does not have.

    A dict of settings was replaced as a whole by a later module, or by another object, and what the first one set
    is gone without a word.

    Warn: a module of the project that the process has loaded sets the key, and the process does not have it, or has
    the default.

    Later: update the dict instead of replacing it; the fix is the line to add, and says where.

    Not: a module that was not loaded; one that was changed since (`settings-changed`); what is computed in a way
    that was not read.

    Wrong: a hook that removes a key on purpose.

    Try: a settings file that assigns `CELERY_BROKER_TRANSPORT_OPTIONS` anew after it imported another that had set
    it, then `stucktrace audit PID`.

    `settings-changed`: a settings file was changed after the process started.

    What it says now is not in force.

    Warn: the file is newer than the process, and says something else than the process has.

    Later: restart the process to put it in force.

    Not: a file that is newer and says the same.

    Try: change a setting of a running worker's project, then `stucktrace audit PID`.
    """
    facts = view.facts.values()
    newer = [each for fact in facts for each in _others(fact) if each[1].endswith(CHANGED_SINCE)]
    absent = [fact for fact in facts if fact.source in (NOT_SET, DEFAULT) and view.uses(fact)]
    gone = [each for fact in absent for each in _others(fact) if not each[1].endswith(CHANGED_SINCE)]
    if gone:
        yield _lost(view, gone)
    if newer:
        where = newer[0][1].removesuffix(CHANGED_SINCE)
        yield Check(
            "settings-changed",
            WARN,
            f"{where} was changed after the process started: what it says now is not in force",
            tuple(f"{fact.name} = {shown(value)} in {place}" for fact, place, value in newer),
            "restart the process to put it in force",
        )


def _others(fact: SettingFact) -> list[tuple[SettingFact, str, Value]]:
    return [(fact, where, value) for where, value in fact.others]


def _lost(view: View, gone: list[tuple[SettingFact, str, Value]]) -> Check:
    # The line of a file says more than the name of what holds it in memory.
    told: dict[str, tuple[SettingFact, str, Value]] = {}
    for each in gone:
        before = told.get(each[0].name)
        if before is None or (not before[1].startswith("/") and each[1].startswith("/")):
            told[each[0].name] = each
    lost = [each for name, each in told.items() if not any(other.startswith(f"{name}[") for other in told)]
    fact, where, _ = lost[0]
    names = list(dict.fromkeys(each.name.removeprefix(f"{TRANSPORT}.").partition("[")[0] for each, *_ in lost))
    them, table = "it" if len(names) == 1 else "them", fact.name.partition(".")[0]
    winner = view.facts.get(table) if fact.source == NOT_SET else None
    replaced = winner is not None and winner.source != DEFAULT
    by = f"; {table} was replaced as a whole ({winner.source})" if winner is not None and replaced else ""
    options = {each.name.partition(".")[2]: value for each, _, value in lost if each.source == NOT_SET}
    plain = [f"{view.spelled(each.name)} = {shown(value)}" for each, _, value in lost if each.source == DEFAULT]
    return Check(
        "settings-overlay",
        WARN,
        f"{where} sets {', '.join(names)}, and the running process does not have {them}{by}",
        tuple(f"{each.name} = {shown(value)} in {place}, not in force" for each, place, value in lost),
        "; ".join([*([add(view, options)] if options else []), *plain]),
    )


def _pool_limit(view: View) -> Iterator[Check]:
    """`no-connection-pool`: each publish makes a connection of its own and closes it again.

    `broker_pool_limit` of 0 or None means that there is no pool.

    Warn: the setting in force is 0 or None.

    Later: `broker_pool_limit = 10`.

    Not: a limit that was not set: the default is 10.

    Try: `broker_pool_limit = 0` in an application's settings, then `stucktrace audit PID`.
    """
    limit = view.given("broker_pool_limit")
    if limit is not None and not limit.value:
        yield Check(
            "no-connection-pool",
            WARN,
            f"broker_pool_limit = {shown(limit.value)}: each publish makes a connection of its own and closes it again",
            evidence(limit),
            f"{view.spelled('broker_pool_limit')} = 10",
        )


def _has_children(view: View) -> bool:
    """It is a worker, and its pool one of processes."""
    return view.value("app_role") == "worker" and view.value("worker_pool") in ("prefork", "processes")


def _tasks(view: View) -> Iterator[Check]:
    """`max-tasks-per-child`: a child of Celery's pool ends after a few tasks.

    Each end costs a fork, and new connections to all that its tasks talk to.

    Warn: `worker_max_tasks_per_child` is below 50 in a worker with a pool of processes.

    Later: 1000, or none.

    Not: a pool of threads or greenlets, which has no children.

    Try: `celery worker --max-tasks-per-child 5`, then `stucktrace audit PID`.
    """
    tasks = view.given("worker_max_tasks_per_child")
    count = number(tasks.value) if tasks is not None else None
    if tasks is None or not count or not _has_children(view):
        return
    low = count < FEW_TASKS
    text = f"a child of the pool is replaced after {count:g} task{'' if count == 1 else 's'}"
    yield Check(
        "max-tasks-per-child",
        WARN if low else OK,
        f"{text}: each time costs a fork and new connections" if low else text,
        evidence(tasks),
        f"{view.spelled('worker_max_tasks_per_child')} = 1000, or --max-tasks-per-child 1000" if low else "",
    )


def _memory(view: View, process: ProcessFact) -> Iterator[Check]:
    """`max-memory-per-child`: a child of Celery's pool is above its memory limit from the beginning.

    billiard compares a child's largest size so far with the limit after each task, so each task is its child's
    last. The unit is kB.

    Warn: `worker_max_memory_per_child` is below what a child of this worker has now.

    Later: four times what a child has now.

    Not: a child that grew into the limit, which is what it is for.

    Try: `celery worker --max-memory-per-child 1000`, then `stucktrace audit PID`.
    """
    memory = view.given("worker_max_memory_per_child")
    limit_kb = number(memory.value) if memory is not None else None
    if memory is None or not limit_kb or not _has_children(view) or not process.rss_bytes:
        return
    rss_kb = process.rss_bytes / 1024
    if process.worker.kind == "celery-child" and limit_kb < rss_kb:
        yield Check(
            "max-memory-per-child",
            WARN,
            f"worker_max_memory_per_child = {limit_kb:g} kB is less than a child has now: a task is its last",
            (*evidence(memory), f"pid {process.pid} has {rss_kb:.0f} kB"),
            f"{view.spelled('worker_max_memory_per_child')} = {round(4 * rss_kb, -4):.0f}",
        )


def _prefetch(view: View) -> Iterator[Check]:
    """`prefetch-unlimited`: one worker takes the whole queue, and the others see none of it.

    `worker_prefetch_multiplier = 0` takes away the limit of messages that a worker holds.

    Warn: the setting in force is 0.

    Later: 1, or a small number where tasks are short.

    Not: a high multiplier.

    Try: `worker_prefetch_multiplier = 0` in an application's settings, then `stucktrace audit PID`.
    """
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
    """`no-connection-retry`: a worker that loses its broker once ends.

    `broker_connection_retry = False` turns off what would connect it again.

    Warn: the setting in force is False.

    Later: True, which is the default.

    Not: `broker_connection_retry_on_startup`, which is about the first connection.

    Try: `broker_connection_retry = False` in an application's settings, then `stucktrace audit PID`.
    """
    retry = view.given("broker_connection_retry")
    if retry is not None and retry.value is False:
        yield Check(
            "no-connection-retry",
            WARN,
            "broker_connection_retry = False: a worker that loses its broker once ends",
            evidence(retry),
            f"{view.spelled('broker_connection_retry')} = True",
        )
