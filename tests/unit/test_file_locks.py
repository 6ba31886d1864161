"""Waits for flock and fcntl locks: on itself, on a stopped holder, on a live one."""

from tests.unit.snapshots import codes, file_lock, lock, owned_by, relative, snapshot, thread, verdict

APP = ["main /srv/app/main.py:8", "<module> /srv/app/main.py:3"]


def waiting(*holders, blocked_s=60.0, threads=(), **more):
    first = thread(syscall="flock", fd=8, blocked_s=blocked_s)
    return snapshot(first, *threads, stacks={100: APP}, file_locks=[file_lock(100, holders)], **more)


def test_a_process_that_waits_for_itself():
    found = verdict(waiting(100))
    assert (found.code, found.confidence) == ("deadlock", "proven")
    assert "/run/app.lock" in found.summary


def test_another_thread_of_it_may_release_it():
    assert verdict(waiting(100, blocked_s=12, threads=[thread(101, None)])).verdict_class == "healthy"


def test_a_stopped_holder():
    found = verdict(waiting(300, relatives=[relative(300, "sibling", state="T", command="cron")]))
    assert (found.code, found.confidence) == ("lock-held", "likely")
    assert found.now[0].do == "kill -CONT 300"


def test_a_live_holder_is_waiting_and_past_the_budget_inconclusive():
    assert verdict(waiting(300, blocked_s=12)).code == "waiting"
    found = verdict(waiting(300, blocked_s=60))
    assert found.code == "inconclusive"
    assert "held by pid 300" in found.summary
    assert found.later[0].do == "stucktrace pid 300"


def test_a_lock_whose_holder_waits_for_a_file():
    first, holder = thread(blocked_s=60.0), thread(101, "flock", 8, blocked_s=60.0)
    held = [lock(100, owner=owned_by(101))]
    facts = snapshot(first, holder, stacks={100: APP, 101: APP}, locks=held, file_locks=[file_lock(101, [300])])
    found = verdict(facts)
    assert found.code == "lock-held"
    assert found.chain[-1] == "/run/app.lock, held by pid 300"


def test_a_lock_held_briefly():
    assert codes(waiting(300, blocked_s=0.2)) == [("waiting", "likely")]
