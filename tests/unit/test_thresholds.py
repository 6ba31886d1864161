"""When a process is examined, and what counts as stuck, by its role."""

from __future__ import annotations

import pytest
from stucktrace.facts import WorkerFact
from stucktrace.node.thresholds import thresholds


@pytest.mark.parametrize("timeout_s", [1, 2, 4, 8, 30, 120, 600])
@pytest.mark.parametrize("stuck_after_s", [None, 5.0, 1000.0])
def test_the_verdict_of_a_gunicorn_worker_comes_before_its_end(timeout_s, stuck_after_s):
    found = thresholds(WorkerFact("gunicorn-worker", worker_class="sync", timeout_s=timeout_s), stuck_after_s)
    assert found.heartbeat_s is not None and found.heartbeat_budgets is not None
    # An idle worker's heartbeat gets as old as half of the timeout.
    assert timeout_s / 2 < found.heartbeat_s <= 0.55 * timeout_s
    assert found.heartbeat_budgets.request_s(timeout_s, main=True) <= 0.6 * timeout_s
    assert found.heartbeat_budgets.request_s(timeout_s) == found.budgets.request_s(timeout_s)
    assert found.heartbeat_budgets.owed_s < timeout_s


def test_requests_of_threads_are_guarded_by_no_timeout_of_gunicorn():
    found = thresholds(WorkerFact("gunicorn-worker", worker_class="gthread", timeout_s=300), None)
    assert (found.look_s, found.budgets.request_s(300)) == (5, 30)


@pytest.mark.parametrize("timeout_s", [None, 0])
def test_without_a_timeout_there_is_no_heartbeat_to_judge_by(timeout_s):
    found = thresholds(WorkerFact("gunicorn-worker", worker_class="sync", timeout_s=timeout_s), None)
    assert found.heartbeat_s is None and found.look_s == 5


def test_celery_has_its_soft_time_limit():
    child = WorkerFact("celery-child", timeout_s=100)
    assert thresholds(child, None).budgets.stuck_after_s == 80
    assert thresholds(child, None).look_s == 5
    assert thresholds(child, 4).budgets.stuck_after_s == 4
    assert thresholds(WorkerFact("celery-child"), None).budgets.stuck_after_s == 30


def test_what_the_user_gave_is_looked_at_halfway():
    found = thresholds(WorkerFact("python"), 4)
    assert (found.look_s, found.budgets.stuck_after_s, found.budgets.stuck_after_given) == (2, 4, True)
