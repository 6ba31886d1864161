"""When the agent does less, and when again all."""

from __future__ import annotations

import time

from stucktrace.node import self_watch
from stucktrace.node.self_watch import NORMAL, RARE_REPEATS, RARER, WINDOW_S, SelfWatch, shed_level
from stucktrace.settings import Settings

SETTINGS = Settings(cpu_budget=0.05, memory_budget_bytes=100_000_000)


def level(cpu_share: float, rss_mb: float, previous: int) -> int:
    return shed_level(cpu_share, int(rss_mb * 1e6), SETTINGS, previous)


def test_one_level_more_while_over_a_budget():
    assert level(0.01, 50, NORMAL) == NORMAL
    assert level(0.06, 50, NORMAL) == RARER
    assert level(0.01, 101, NORMAL) == RARER
    assert level(0.06, 50, RARER) == RARE_REPEATS
    assert level(0.06, 50, RARE_REPEATS) == RARE_REPEATS


def test_a_level_stands_until_both_are_well_below_their_budgets():
    assert level(0.04, 50, RARER) == RARER
    assert level(0.009, 50, RARER) == NORMAL
    assert level(0.009, 95, RARER) == RARER
    assert level(0.009, 50, RARE_REPEATS) == RARER


def test_looking_four_times_as_often_again_stays_inside_the_budget():
    longest = max(self_watch.INTERVAL_FACTOR)
    assert level(self_watch.CALM_CPU * SETTINGS.cpu_budget * longest, 50, NORMAL) == NORMAL


def test_a_burst_is_no_load_but_a_load_is(monkeypatch):
    spent_s = 100.0
    monkeypatch.setattr(self_watch, "cpu_s", lambda: spent_s)
    monkeypatch.setattr(self_watch, "rss_bytes", lambda: 50_000_000)
    watch, now = SelfWatch(0.0), 0.0
    levels = []
    # A second of CPU time at once, then a tenth of a core for a minute, then rest.
    for cost_s in [1.0, *[0.0] * 39, *[0.1] * 100, *[0.0] * 130]:
        now += 1
        spent_s += cost_s
        levels.append(watch.look(now, SETTINGS).level)
    changes = [(second, new) for second, (old, new) in enumerate(zip(levels, levels[1:]), 1) if old != new]
    assert [new for _, new in changes] == [RARER, RARE_REPEATS, RARER, NORMAL]
    assert all(later - earlier >= WINDOW_S for (earlier, _), (later, _) in zip(changes, changes[1:]))


def test_its_own_figures_are_those_of_the_kernel():
    watch = SelfWatch(time.monotonic())
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    usage = watch.look(time.monotonic(), SETTINGS)
    assert 0.19 <= usage.cpu_share * WINDOW_S <= 10 and usage.cpu_s >= 0.2
    assert 5_000_000 < usage.rss_bytes < 1_000_000_000
