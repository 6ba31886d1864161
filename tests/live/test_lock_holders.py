"""Who holds a Python lock that is in no owner field, in which frame, and what the lock is called and is inside of."""

from pathlib import Path

import pytest
from stucktrace.collectors import locks, python

from tests.harness import pythons

PROGRAM = """
import contextlib, queue, sys, threading, time

class Account:
    shared = threading.Lock()
    def __init__(self):
        self.lock = threading.Lock()
    def holds_an_attribute(self):
        with self.lock:
            time.sleep(600)
    def wants_an_attribute(self):
        with self.lock: pass
    def holds_an_attribute_of_the_class(self):
        with self.shared:
            time.sleep(600)
    def wants_an_attribute_of_the_class(self):
        with self.shared: pass
    def holds_by_hand(self):
        self.lock.acquire()
        try:
            time.sleep(600)
        finally:
            self.lock.release()
    def wants_by_hand(self):
        self.lock.acquire()

class Guard:
    def __init__(self):
        self._lock = threading.Lock()
    def __enter__(self):
        self._take()
    def __exit__(self, *_):
        self._lock.release()
    def _take(self):
        self._lock.acquire()

class Bystander:
    # It has a lock, and its with block does not hold it.
    def __init__(self):
        self.lock = threading.Lock()
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.closed = True

class Condition(Bystander):
    # It has nothing but the name of threading's.
    def __init__(self):
        self._lock = threading.Lock()

account, by_hand, guard, bystander, namesake = Account(), Account(), Guard(), Bystander(), Condition()
managed, stacked, pushed, again, by_hand_again = (threading.Lock() for _ in range(5))
bare, given_back, in_generator, handed, other = (threading.Lock() for _ in range(5))
given_back_by_a_manager, given_back_by_a_class = threading.Lock(), threading.Lock()
waiting_line, empty, done, slots = queue.Queue(), queue.Queue(), threading.Event(), threading.Semaphore(0)
condition = threading.Condition()
recursive = threading.RLock()
held, given = threading.Event(), threading.Semaphore(0)

@contextlib.contextmanager
def manager(lock):
    with lock:
        yield
@contextlib.contextmanager
def outer_manager(lock):
    with manager(lock):
        yield
def holds_in_a_manager():
    with outer_manager(managed):
        time.sleep(600)
def wants_in_a_manager():
    managed.acquire()
def holds_in_a_stack():
    with contextlib.ExitStack() as stack:
        stack.enter_context(stacked)
        pushed.acquire()
        stack.callback(pushed.release)
        time.sleep(600)
def wants_in_a_stack():
    stacked.acquire()
def wants_a_callback():
    pushed.acquire()
def holds_a_wrapper():
    with guard:
        time.sleep(600)
def wants_a_wrapper():
    with guard: pass
def is_in_a_bystander():
    with bystander:
        time.sleep(600)
def wants_of_a_bystander():
    bystander.lock.acquire()
def is_in_a_namesake():
    with namesake:
        time.sleep(600)
def wants_of_a_namesake():
    namesake._lock.acquire()
def holds_it_itself():
    with again:
        wants_itself()
def wants_itself():
    with again: pass
def holds_it_itself_by_hand():
    by_hand_again.acquire()
    wants_itself_by_hand()
def wants_itself_by_hand():
    by_hand_again.acquire()
def holds_recursively():
    with recursive:
        holds_within()
def holds_within():
    with recursive:
        time.sleep(600)
def wants_recursively():
    with recursive: pass
def takes_elsewhere(lock):
    lock.acquire()
def wants_of_nobody():
    bare.acquire()
def releases_in_its_block():
    with given_back:
        given_back.release()
        given.release()
        time.sleep(600)
        given_back.acquire()
@contextlib.contextmanager
def unlocked(lock):
    lock.release()
    yield
    lock.acquire()
class Unlocked:
    def __init__(self, lock):
        self._lock = lock
    def __enter__(self):
        self._lock.release()
    def __exit__(self, *_):
        self._lock.acquire()
def releases_in_a_manager():
    with given_back_by_a_manager:
        with unlocked(given_back_by_a_manager):
            given.release()
            time.sleep(600)
def wants_what_a_manager_gave_back():
    given_back_by_a_manager.acquire()
def releases_in_a_class():
    with given_back_by_a_class:
        with Unlocked(given_back_by_a_class):
            given.release()
            time.sleep(600)
def wants_what_a_class_gave_back():
    given_back_by_a_class.acquire()
def wants_what_was_given_back():
    given_back.acquire()
def suspended():
    with in_generator:
        yield
def has_a_suspended_generator():
    kept = suspended()
    next(kept)
    time.sleep(600)
def wants_of_a_generator():
    in_generator.acquire()
def hands_over():
    handed.acquire()
    time.sleep(600)
def takes_over():
    time.sleep(600)
    handed.release()
def wants_what_is_handed_over():
    handed.acquire()
def holds_the_queue():
    with waiting_line.mutex:
        time.sleep(600)
def puts():
    waiting_line.put(1)
def gets():
    empty.get()
def waits_for_an_event():
    done.wait()
def takes_a_slot():
    slots.acquire()
def waits_for_a_condition():
    with other:
        with condition:
            condition.wait()
def holds_the_condition():
    while not condition._waiters: time.sleep(0.01)
    with condition:
        held.set()
        time.sleep(600)
def wants_the_condition():
    with condition: pass
def wants_beside_the_condition():
    other.acquire()

takes_elsewhere(bare)
takes_elsewhere(bystander.lock)
takes_elsewhere(namesake._lock)
holders = [account.holds_an_attribute, account.holds_an_attribute_of_the_class, by_hand.holds_by_hand, holds_in_a_manager,
           holds_in_a_stack, holds_a_wrapper, is_in_a_bystander, is_in_a_namesake, holds_recursively, releases_in_its_block, releases_in_a_manager, releases_in_a_class,
           has_a_suspended_generator, hands_over, takes_over, holds_the_queue, waits_for_a_condition, holds_the_condition]
wanted = [account.wants_an_attribute, account.wants_an_attribute_of_the_class, by_hand.wants_by_hand, wants_in_a_manager,
          wants_in_a_stack, wants_a_callback, wants_a_wrapper, wants_of_a_bystander, wants_of_a_namesake, wants_recursively,
          wants_what_was_given_back, wants_what_a_manager_gave_back, wants_what_a_class_gave_back, wants_of_a_generator, wants_what_is_handed_over, puts, wants_the_condition,
          wants_beside_the_condition, wants_of_nobody, holds_it_itself, holds_it_itself_by_hand, gets, waits_for_an_event,
          takes_a_slot]
def start(function):
    threading.Thread(target=function, name=function.__name__, daemon=True).start()
for function in holders:
    start(function)
locked = [account.lock, account.shared, by_hand.lock, managed, stacked, pushed, guard._lock, in_generator,
          handed, waiting_line.mutex, other]
held.wait()
for lock in (given_back, given_back_by_a_manager, given_back_by_a_class):
    given.acquire()
for lock in (given_back, given_back_by_a_manager, given_back_by_a_class):
    takes_elsewhere(lock)
while not all(lock.locked() for lock in locked):
    time.sleep(0.01)
for function in wanted:
    start(function)
print("ready", len(wanted))
time.sleep(600)
"""

HOLDERS = {
    "wants_an_attribute": ("holds_an_attribute", "with block"),
    "wants_an_attribute_of_the_class": ("holds_an_attribute_of_the_class", "with block"),
    "wants_by_hand": ("holds_by_hand", "acquire"),
    "wants_in_a_manager": ("holds_in_a_manager", "context manager"),
    "wants_in_a_stack": ("holds_in_a_stack", "context manager"),
    "wants_a_callback": ("holds_in_a_stack", "context manager"),
    "wants_a_wrapper": ("holds_a_wrapper", "context manager"),
    "wants_recursively": ("holds_recursively", "owner field"),
    "holds_it_itself": ("holds_it_itself", "with block"),
    "holds_it_itself_by_hand": ("holds_it_itself_by_hand", "acquire"),
    "puts": ("holds_the_queue", "with block"),
    "wants_the_condition": ("holds_the_condition", "owner field"),
    "wants_beside_the_condition": ("waits_for_a_condition", "with block"),
}
NOBODY = (
    "wants_of_a_bystander",
    "wants_of_a_namesake",
    "wants_what_was_given_back",
    "wants_what_a_manager_gave_back",
    "wants_what_a_class_gave_back",
    "wants_of_a_generator",
    "wants_what_is_handed_over",
    "wants_of_nobody",
    "gets",
    "waits_for_an_event",
    "takes_a_slot",
    "waits_for_a_condition",
)
PATHS = {
    "wants_an_attribute": "Account.lock",
    "wants_an_attribute_of_the_class": "Account.shared",
    "wants_by_hand": "Account.lock",
    "wants_a_wrapper": "Guard._lock",
    "wants_in_a_manager": "managed",
    "puts": "Queue.not_full",
    "wants_the_condition": "condition",
}
PARTS = {
    "wants_an_attribute": "__main__.Account",
    "puts": "queue.Queue",
    "gets": "queue.Queue",
    "waits_for_an_event": "threading.Event",
    "takes_a_slot": "threading.Semaphore",
    "wants_the_condition": "threading.Condition",
    "wants_in_a_manager": "",
}


def known(interpreter):
    version = pythons.name_of(interpreter)
    return version == "debian" or tuple(map(int, version.split(".")[:2])) >= (3, 8)


@pytest.mark.parametrize("interpreter", [*filter(known, pythons.interpreters())], ids=pythons.name_of)
def test_who_holds_what_and_where(interpreter, tmp_path):
    (tmp_path / "app.py").write_text(PROGRAM)
    code = f"import runpy; runpy.run_path({str(tmp_path / 'app.py')!r}, run_name='__main__')"
    with pythons.run(code, python=interpreter) as target:
        pythons.until(lambda: pythons.settled(target.pid, "futex", int(target.words[0])), "the waiters wait")
        process, seen = pythons.process_of(target.pid), pythons.threads_of(target.pid)
        stacks = python.collect(process, seen, native=False, show_locals=False)
        facts = locks.collect(process, seen, stacks)
    names = {thread.tid: thread.name for thread in stacks.threads}
    frames = {thread.tid: thread.frames for thread in stacks.threads}
    found = {names[fact.waiter_tid]: fact for fact in facts}
    told = {name: (names[fact.owner.tid], fact.owner.how) for name, fact in found.items() if fact.owner}
    assert told == HOLDERS
    assert set(found) == {*HOLDERS, *NOBODY}
    for name, fact in found.items():
        if fact.owner is not None:
            assert bool(fact.owner.assumes) == (fact.owner.how in ("acquire", "context manager")), name
            place = frames[fact.owner.tid][fact.owner.frame].function
            assert place.rpartition(".")[2] == HOLDERS[name][0], name
            if fact.owner.how == "acquire":
                source = (tmp_path / "app.py").read_text().splitlines()
                assert ".acquire(" in source[fact.owner.taken.line - 1], name
    assert "generator manager" in found["wants_in_a_manager"].owner.assumes
    assert found["holds_it_itself"].owner.state == "self"
    assert {name: found[name].path for name in PATHS} == PATHS
    assert {name: found[name].part_of for name in PARTS} == PARTS
    assert Path(frames[found["puts"].owner.tid][found["puts"].owner.frame].file).name == "app.py"
