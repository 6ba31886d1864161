"""When something that happens over time is an incident, and when it only looks like one. Literal events and samples."""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from stucktrace.alerts import EXITED, KILLED
from stucktrace.collectors.beat_schedule import Plan, longest_sleep, same
from stucktrace.collectors.lifecycle import LifeEvent
from stucktrace.facts import ConntrackFact, Snapshot, Syscall, WorkerFact
from stucktrace.incidents import WorkerAborted, code_of
from stucktrace.node import beats, conntrack_pressure, growth, stalls
from stucktrace.node.incidents import Incidents
from stucktrace.node.master_storms import memory_limit
from stucktrace.node.storms import RECYCLED, Storms
from stucktrace.node.thresholds import thresholds
from stucktrace.node.tracker import Ended, Tracked

from tests.harness import kernel
from tests.unit.snapshots import PID, activity, process, snapshot, thread

GONE = 1 << 23
"""Above every pid that the kernel gives."""
MASTER, WORKER = GONE + 1, GONE + 2
BOOT = 1000.0


def tracked(pid: int = WORKER, kind: str = "gunicorn-worker", ppid: int = MASTER, **more: Any) -> Tracked:
    worker = WorkerFact(kind, timeout_s=8.0 if kind.startswith("gunicorn") else None, **more)
    return Tracked(pid, ppid, 1, worker, thresholds(worker, None), None, -1)


def incidents(hooks: bool = True) -> Incidents:
    return Incidents(hooks=hooks, realtime=lambda at: at)


def begun(found: Incidents, now: float = BOOT) -> list[str]:
    return [code_of(occurrence.incident) for occurrence in found.due()]


class TestTimeouts:
    PROCESSES = {WORKER: tracked(), MASTER: tracked(MASTER, "gunicorn-master", 1)}

    def test_an_abort_by_the_own_master_is_one(self):
        found = incidents()
        found.event(LifeEvent("abort", BOOT, WORKER, sender=MASTER, signal=signal.SIGABRT), self.PROCESSES)
        (occurrence,) = found.due()
        assert isinstance(occurrence.incident, WorkerAborted) and occurrence.incident.seen
        assert occurrence.member.incident == "worker-timeout" and occurrence.since == BOOT - 8.0

    @pytest.mark.parametrize("sender", [0, 1, WORKER, GONE + 9])
    def test_an_abort_by_anybody_else_is_none(self, sender: int):
        found = incidents()
        found.event(LifeEvent("abort", BOOT, WORKER, sender=sender, signal=signal.SIGABRT), self.PROCESSES)
        found.ended(Ended(self.PROCESSES[WORKER], KILLED, signal.SIGABRT), False, BOOT)
        assert begun(found) == []

    def test_an_abort_out_of_sight_of_a_worker_with_its_master_out_of_sight_is_none(self):
        found = incidents()
        found.event(LifeEvent("abort", BOOT, WORKER, sender=0), {WORKER: tracked(ppid=0)})
        assert begun(found) == []

    def test_many_at_once_are_told_a_few_at_a_time(self):
        found = incidents()
        processes = {GONE + 10 + number: tracked(GONE + 10 + number) for number in range(100)}
        for pid in processes:
            found.event(LifeEvent("abort", BOOT, pid, sender=MASTER), processes)
        counts = [len(found.due()) for _ in range(8)]
        assert sum(counts) == 100 and max(counts) < 20

    def test_a_kill_at_shutdown_is_none(self):
        found = incidents()
        found.event(LifeEvent("signal", BOOT, WORKER, sender=MASTER, signal=signal.SIGKILL), self.PROCESSES)
        found.ended(Ended(self.PROCESSES[WORKER], KILLED, signal.SIGKILL), True, BOOT)
        assert begun(found) == []

    def test_without_the_kernels_events_the_heartbeat_tells(self):
        found = incidents(hooks=False)
        found.ended(Ended(tracked(), EXITED, 256), True, BOOT)
        (occurrence,) = found.due()
        assert isinstance(occurrence.incident, WorkerAborted) and not occurrence.incident.seen

    def test_it_is_over_when_no_worker_is_aborted_for_a_while(self):
        found = incidents()
        found.event(LifeEvent("abort", BOOT, WORKER, sender=MASTER, signal=signal.SIGABRT), self.PROCESSES)
        found.ended(Ended(self.PROCESSES[WORKER], EXITED, 256), True, BOOT + 1)
        assert found.over(BOOT + 59) == []
        (over,) = found.over(BOOT + 61)
        assert (over.member.pid, over.how) == (WORKER, KILLED)


class TestStorms:
    """One master with `workers` slots; each worker of the list lives (from, for so long) and ends with a status."""

    @staticmethod
    def storm(lives: list[tuple[float, float, int]], workers: int = 2, now: float | None = None, **more: Any) -> Any:
        storms, last = Storms(), 0.0
        for number, (began, lived, status) in enumerate(lives):
            storms.forked(MASTER, GONE + 10 + number, BOOT + began)
            storms.ended(GONE + 10 + number, BOOT + began + lived, status)
            last = max(last, began + lived)
        more.setdefault("recycling_counts", False)
        return storms.storm(MASTER, workers, BOOT + (last + 1 if now is None else now), realtime=lambda at: at, **more)

    def test_workers_that_fail_at_once_again_and_again(self):
        assert self.storm([(number * 1.5, 1.0, signal.SIGSEGV) for number in range(6)])
        assert self.storm([(number * 1.5, 1.0, 1 << 8) for number in range(6)])

    def test_children_over_their_memory_limit(self):
        lives = [(number * 1.5, 2.0, RECYCLED << 8) for number in range(8)]
        assert self.storm(lives, recycling_counts=True)
        assert not self.storm(lives, recycling_counts=False), "max-tasks-per-child is asked for"

    @pytest.mark.parametrize(
        "lives",
        [
            [(0.0, 1.0, signal.SIGSEGV)] * 4,
            [(number * 0.1, 0.5, 1 << 8) for number in range(8)],
            [(number * 1.5, 1.0, 0) for number in range(40)],
            [(number * 1.5, 1.0, signal.SIGTERM) for number in range(40)],
            [(number * 12.0, 12.0, signal.SIGKILL) for number in range(10)],
            [(number * 15.0, 2.0, signal.SIGKILL) for number in range(10)],
        ],
        ids=["too few", "over at once", "max-requests", "reload or autoscale", "they got to work", "too rare"],
    )
    def test_no_storm(self, lives: list[tuple[float, float, int]]):
        assert not self.storm(lives)

    def test_a_large_pool_may_lose_more_at_once(self):
        lives = [(number * 0.5, 1.0, signal.SIGSEGV) for number in range(16)]
        assert not self.storm(lives, workers=16) and self.storm(lives, workers=4)

    def test_it_is_over_a_while_after_the_last_early_end(self):
        lives = [(number * 1.5, 1.0, signal.SIGSEGV) for number in range(6)]
        assert not self.storm(lives, now=40.0)

    def test_what_runs_another_program_is_no_worker(self):
        storms = Storms()
        for number in range(20):
            storms.forked(MASTER, GONE + number, BOOT + number)
            storms.executed(GONE + number)
            storms.ended(GONE + number, BOOT + number + 0.1, 1 << 8)
        assert not storms.storm(MASTER, 1, BOOT + 20.5, recycling_counts=True, realtime=lambda at: at)

    def test_what_a_worker_forks_is_none_of_the_masters(self):
        found = incidents()
        processes = {WORKER: tracked(WORKER, "celery-child"), MASTER: tracked(MASTER, "celery-main", 1)}
        for number in range(20):
            found.event(LifeEvent("fork", BOOT + number, GONE + 10 + number, parent=WORKER), processes)
            found.event(LifeEvent("exit", BOOT + number + 0.1, GONE + 10 + number, status=256), processes)
        found.sample(BOOT + 20.2, processes)
        assert begun(found) == []

    def test_through_the_events(self):
        found = incidents()
        processes = {MASTER: tracked(MASTER, "gunicorn-master", 1, concurrency=1)}
        for number in range(8):
            found.event(LifeEvent("fork", BOOT + number, GONE + 10 + number, parent=MASTER), processes)
            found.event(LifeEvent("exit", BOOT + number + 0.5, GONE + 10 + number, status=11), processes)
        found.sample(BOOT + 8, processes)
        assert begun(found) == ["restart-storm"]
        found.sample(BOOT + 40, processes)
        assert found.over(BOOT + 40) == []
        found.sample(BOOT + 80, processes)
        assert [over.how for over in found.over(BOOT + 80)] == ["recovered"]

    def test_why_a_pool_replaces_its_children_stands_in_its_options(self):
        main = ("celery", "-A", "shop", "worker")
        assert memory_limit((*main, "--max-memory-per-child=1"), []) == "--max-memory-per-child=1"
        assert memory_limit((*main, "--max-memory-per-child", "1", "--max-tasks-per-child", "1000"), [])
        assert memory_limit((*main, "--max-tasks-per-child=1"), []) == ""
        assert memory_limit((*main, "--max-tasks-per-child=1", "--max-memory-per-child=100000"), []) == ""
        assert memory_limit(main, []) == ""


MB = 1e6
HOUR = 3600.0


def series(value: Callable[[float], float], seconds: float, every_s: float = 60.0) -> growth.Series:
    found = growth.Series(every_s)
    for step in range(int(seconds / every_s) + 1):
        found.add(step * every_s, value(step * every_s))
    return found


class TestGrowth:
    def test_a_leak(self):
        leak = series(lambda at: 100 * MB + 0.2 * MB * at, HOUR)
        rate = growth.memory_rate(leak)
        assert rate is not None and rate == pytest.approx(0.2 * MB)

    def test_a_leak_under_a_noisy_load_and_after_a_warm_up(self):
        def noisy(at: float) -> float:
            return 100 * MB + min(at, 600) * 0.5 * MB + 0.1 * MB * at + 10 * MB * math.sin(at)

        assert growth.memory_rate(series(noisy, 4 * HOUR))

    @pytest.mark.parametrize(
        "value",
        [
            lambda at: 100 * MB + min(at, 600) * MB,
            lambda at: 100 * MB + 900 * MB * (1 - math.exp(-at / 900)),
            lambda at: 100 * MB + 0.2 * MB * (at % 1200),
            lambda at: 100 * MB if at < 2 * HOUR else 900 * MB,
            lambda at: 2000 * MB + 0.05 * MB * at,
            lambda at: 50 * MB + 0.005 * MB * at,
        ],
        ids=["warm-up", "cache", "saw-tooth", "one step", "less than double", "little"],
    )
    @pytest.mark.parametrize("hours", [1, 2, 4, 6])
    def test_no_growth(self, value: Callable[[float], float], hours: int):
        for minutes in range(1, 60 * hours, 7):
            assert not growth.memory_rate(series(value, 60.0 * minutes)), minutes

    def test_a_prediction_reaches_as_far_as_what_was_seen(self):
        leak = series(lambda at: 100 * MB + 0.2 * MB * at, HOUR)
        assert growth.runs_out(leak, 0.2 * MB, 1000 * MB) and not growth.runs_out(leak, 0.2 * MB, 8000 * MB)

    def test_it_takes_half_an_hour(self):
        leak = series(lambda at: 100 * MB + MB * at, 1500)
        assert not growth.memory_rate(leak)

    def test_a_series_keeps_its_span_within_its_bound(self):
        long = series(lambda at: at, 24 * HOUR)
        assert len(long.times) <= growth.MOST and long.times[-1] > 23 * HOUR

    def test_files_that_pile_up_towards_their_limit(self):
        leak = series(lambda at: 50 + at / 2, 1200, 30.0)
        assert growth.fds_rate(leak, 1024) and not growth.fds_rate(leak, 65536)

    def test_files_that_come_and_go(self):
        assert not growth.fds_rate(series(lambda at: 600 + 100 * math.sin(at), HOUR, 30.0), 1024)
        assert not growth.fds_rate(series(lambda at: min(50 + at, 600), HOUR, 30.0), 1024)


class TestConntrack:
    @staticmethod
    def table(count: int, **more: int) -> ConntrackFact:
        return ConntrackFact(7, count, 1000, **more)

    def test_a_table_without_room(self):
        assert conntrack_pressure.presses(self.table(960), self.table(970))
        assert conntrack_pressure.presses(self.table(900), self.table(910, drop=3))

    def test_drops_in_a_table_with_room_are_races(self):
        assert not conntrack_pressure.presses(self.table(100), self.table(100, drop=30, insert_failed=30))
        assert not conntrack_pressure.presses(self.table(900, drop=9), self.table(910, drop=9))
        assert not conntrack_pressure.presses(self.table(999), replace(self.table(999), maximum=None))

    def test_it_is_over_with_room_and_without_drops(self):
        found, process = incidents(), tracked()
        found.conntrack(process, self.table(980), BOOT)
        assert begun(found) == ["conntrack-pressure"]
        for count, over in ((750, 0), (600, 1)):
            found.conntrack(process, self.table(count), BOOT + 10)
            assert len(found.over(BOOT + 10)) == over


BEAT = ("celery", "-A", "shop", "beat")
PLAN = Plan(
    BEAT, place=(1, 2, "celerybeat-schedule"), path="/srv/celerybeat-schedule", written=50.0, home=(1,), settings=5
)


class TestBeats:
    def test_it_sleeps_for_no_longer_than_it_was_told(self):
        assert longest_sleep(BEAT)[0] == 300.0
        assert longest_sleep((*BEAT, "--max-interval", "5"))[0] == 5.0
        assert longest_sleep((*BEAT, "--max-interval=3600"))[0] == 3600.0

    def test_both_have_the_file_open(self):
        opened = replace(PLAN, open_files=frozenset({(1, 9, "/srv/celerybeat-schedule")}))
        assert same(opened, opened, 100.0) == ("/srv/celerybeat-schedule", True)

    def test_both_write_one_path(self):
        assert same(PLAN, replace(PLAN, written=150.0), 100.0) == ("/srv/celerybeat-schedule", False)
        assert same(PLAN, PLAN, 100.0) is None, "nobody writes it"
        assert same(PLAN, replace(PLAN, place=(1, 3, "celerybeat-schedule"), written=150.0), 100.0) is None

    def test_the_same_command_with_a_database_scheduler(self):
        plan = replace(PLAN, argv=(*BEAT, "-S", "django"), scheduler="django", place=None)
        assert same(plan, plan, 100.0) == ("", False)
        for other in ({"home": (2,)}, {"settings": 6}, {"argv": BEAT, "scheduler": ""}, {"settings": None}):
            assert same(plan, replace(plan, **other), 100.0) is None  # type: ignore[arg-type]

    @pytest.fixture
    def overdue(self) -> Iterator[tuple[beats.Beats, Tracked]]:
        """A process that sleeps, sampled as a beat for longer than a beat sleeps."""
        with subprocess.Popen(["sleep", "600"]) as sleeper:
            kernel.wait_for_call(sleeper.pid, "clock_nanosleep")
            found, beat = beats.Beats(), tracked(sleeper.pid, "celery-beat", 1)
            found.sample(BOOT, [beat])
            found.sample(BOOT + 350, [beat])
            assert found.overdue(BOOT + 350) == []
            found.sample(BOOT + 370, [beat])
            assert found.overdue(BOOT + 370) == [sleeper.pid]
            yield found, beat
            sleeper.kill()

    @staticmethod
    def look(beat: Tracked, call: Syscall | str) -> Snapshot:
        return snapshot(thread(beat.pid, call, blocked_s=370.0), process=process(pid=beat.pid))

    def test_one_that_waits_without_an_end_is_stopped(self, overdue: tuple[beats.Beats, Tracked]):
        found, beat = overdue
        stopped = found.stopped(beat.pid, self.look(beat, "futex"), BOOT + 371)
        assert stopped is not None and stopped.asleep_s == 371.0

    @pytest.mark.parametrize(
        "call",
        [
            Syscall(230, "clock_nanosleep", (0,) * 6),
            Syscall(202, "futex", (0,) * 6, endless=False, timeout_s=3600.0),
        ],
    )
    def test_one_that_the_kernel_will_wake_is_not(self, overdue: tuple[beats.Beats, Tracked], call: Syscall):
        found, beat = overdue
        assert found.stopped(beat.pid, self.look(beat, call), BOOT + 371) is None
        assert found.overdue(BOOT + 372) == []


class TestStalls:
    MAIN = tracked(PID, "celery-main", 1, pool="prefork")
    LOOP = ["create_loop /x/kombu/asynchronous/hub.py:306", "asynloop /x/celery/worker/loops.py:87"]

    def look(self, *frames: str, polls: int = 0) -> Snapshot:
        return snapshot(
            thread(PID, None, cpu_s_in_window=0.5),
            stacks={PID: [*frames, *self.LOOP]},
            activity=[activity(PID, "epoll_wait", 4, polls)] if polls else [],
            activity_complete=True,
            window_s=0.5,
            worker=self.MAIN.worker,
        )

    def test_a_callback_that_never_ends(self):
        found = stalls.Stalls()
        looks = [found.examined(self.MAIN, self.look("crunch /srv/shop.py:9"), BOOT + at) for at in (0, 15, 31)]
        assert looks[:2] == [None, None] and looks[2] is not None and looks[2].looks == 3

    def test_a_busy_loop_that_turns(self):
        found = stalls.Stalls()
        for at in (0, 15, 31, 60):
            assert found.examined(self.MAIN, self.look("crunch /srv/shop.py:9", polls=9), BOOT + at) is None

    def test_other_callbacks_each_time(self):
        found = stalls.Stalls()
        for at, name in ((0, "one"), (15, "two"), (31, "one")):
            assert found.examined(self.MAIN, self.look(f"{name} /srv/shop.py:9"), BOOT + at) is None

    def test_a_pool_without_processes_runs_its_tasks_there(self):
        solo = tracked(PID, "celery-main", 1, pool="solo")
        assert stalls.standing(solo, self.look("crunch /srv/shop.py:9")) is None
