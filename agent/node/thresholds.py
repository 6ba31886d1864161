"""When a wait is worth a look, and when it counts as stuck: by the role of its process. Pure.

A gunicorn worker is killed when its heartbeat is older than its timeout, and its evidence goes with it: its main thread
is judged by a share of that time. No timeout guards the single requests of threaded and asynchronous workers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stucktrace.diagnosis.model import Budgets
from stucktrace.facts import WorkerFact

STUCK_AFTER_S = 30.0
LONGEST_LOOK_S = 5.0
"""What needs no budget to be proven (a deadlock, a peer that is gone), or a short one, is found this soon."""
SHARE = 0.6
"""Of gunicorn's timeout: what is left of it is for the examination, on a busy node too."""
SOFT_SHARE = 0.8
"""Of Celery's soft time limit."""


@dataclass(frozen=True)
class Thresholds:
    """Of one process, in seconds."""

    look_s: float
    """A thread's wait from which on the process is examined."""
    budgets: Budgets
    heartbeat_s: float | None = None
    """Age of gunicorn's heartbeat from which on the process is examined; None: it has none, or no timeout."""
    heartbeat_budgets: Budgets | None = None
    """The budgets of such an examination."""


def thresholds(worker: WorkerFact, stuck_after_s: float | None) -> Thresholds:
    """`stuck_after_s`: what the user asked for."""
    open_ended_s = STUCK_AFTER_S if stuck_after_s is None else stuck_after_s
    if worker.kind.startswith("celery") and worker.timeout_s and stuck_after_s is None:
        open_ended_s = SOFT_SHARE * worker.timeout_s
    found = Thresholds(min(open_ended_s / 2, LONGEST_LOOK_S), _budgets(open_ended_s))
    if worker.kind != "gunicorn-worker" or not worker.timeout_s:
        return found
    timeout_s = worker.timeout_s
    guarded_s = min(open_ended_s, SHARE * timeout_s)
    return Thresholds(
        min(found.look_s, guarded_s / 2),
        found.budgets,
        # An idle worker sleeps for half of its timeout between two heartbeats.
        heartbeat_s=timeout_s / 2 + min(0.5, timeout_s / 20),
        heartbeat_budgets=replace(_budgets(open_ended_s), owed_s=min(Budgets.owed_s, guarded_s), guarded_s=guarded_s),
    )


def _budgets(stuck_after_s: float) -> Budgets:
    return Budgets(owed_s=min(Budgets.owed_s, stuck_after_s), stuck_after_s=stuck_after_s, stuck_after_given=True)
