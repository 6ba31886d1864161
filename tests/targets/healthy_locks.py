"""Healthy processes whose locks change hands, in every legal way. The first argument names the case.

Nothing here is held for longer than a second: whoever looks with a budget of two seconds finds it healthy too.
"""

import concurrent.futures
import contextlib
import multiprocessing
import queue
import random
import sys
import threading
import time

from ready import say_ready

THREADS = 8
STEP_S = 0.05
fork = multiprocessing.get_context("fork")


def spawn(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def crowd(function) -> None:
    """So many threads do the same for ever, the main thread among them."""

    def repeats():
        while True:
            function()
            time.sleep(random.random() * STEP_S)

    for _ in range(THREADS - 1):
        spawn(repeats)
    say_ready()
    repeats()


def works() -> None:
    time.sleep(random.random() * STEP_S)


def locks_move():
    lock = threading.Lock()

    def turn():
        with lock:
            works()

    crowd(turn)


def a_thread_for_each_request():
    """Threads live for a moment; what is seen of them at two instants never fits."""
    lock = threading.Lock()

    def serves():
        with lock:
            time.sleep(0.01)

    say_ready()
    while True:
        request = spawn(serves)
        time.sleep(0.01)
        request.join()


def locks_by_hand_move():
    lock = threading.Lock()

    def turn():
        lock.acquire()
        try:
            works()
        finally:
            lock.release()

    crowd(turn)


def rlocks_move():
    lock = threading.RLock()

    def turn():
        with lock, lock:
            works()

    crowd(turn)


def two_locks_in_one_order():
    first, second = threading.Lock(), threading.Lock()

    def turn():
        with first:
            works()
            with second:
                works()
        with second:
            works()

    crowd(turn)


def locks_of_many_objects():
    """Each thread takes two of many locks, always the lower one first."""
    locks = [threading.Lock() for _ in range(6)]

    def turn():
        lower, higher = sorted(random.sample(range(len(locks)), 2))
        with locks[lower], locks[higher]:
            works()

    crowd(turn)


def conditions_move():
    turn, whose = threading.Condition(), [0]

    def plays(me):
        while True:
            with turn:
                turn.wait_for(lambda: whose[0] == me)
                works()
                whose[0] = (me + 1) % THREADS
                turn.notify_all()

    for number in range(1, THREADS):
        spawn(plays, number)
    say_ready()
    plays(0)


def queues_move():
    items = queue.Queue(2)

    def consumes():
        items.get()
        works()

    def produces():
        while True:
            items.put(1)

    spawn(produces)
    crowd(consumes)


def semaphore_as_a_limit():
    slots = threading.BoundedSemaphore(2)

    def turn():
        with slots:
            works()

    crowd(turn)


def slow_producer():
    """Consumers wait in a condition, most of the time; the producer comes now and then."""
    news, items = threading.Condition(), []

    def consumes():
        while True:
            with news:
                while not items:
                    news.wait()
                items.pop()

    for _ in range(3):
        spawn(consumes)
    say_ready()
    while True:
        time.sleep(1)
        with news:
            items.append(1)
            news.notify()


def inside_one_condition():
    """Two threads are inside `with condition:`, and one of them waits: it gave the lock back."""
    turn = threading.Condition()

    def waits():
        with turn:
            turn.wait()

    def holds():
        while True:
            with turn:
                time.sleep(1)
            works()

    spawn(waits)
    spawn(holds)
    say_ready()
    while True:
        with turn:
            works()
        works()


def parked_beside_contention():
    items, lock = queue.Queue(), threading.Lock()
    for _ in range(4):
        spawn(items.get)

    def turn():
        with lock:
            works()

    crowd(turn)


def idle_pools():
    with concurrent.futures.ThreadPoolExecutor(4) as pool, fork.Pool(2) as processes:
        list(pool.map(lambda _: works(), range(8)))
        processes.map(abs, range(8))
        say_ready()
        threading.Event().wait()


def idle_readers_of_one_queue():
    """Several processes wait for the semaphore of a queue that one of them reads."""
    items = fork.Queue()
    for _ in range(3):
        fork.Process(target=items.get, daemon=True).start()
    say_ready()
    threading.Event().wait()


def busy_readers_of_one_queue():
    items = fork.SimpleQueue()

    def reads():
        while True:
            items.get()
            works()

    for _ in range(3):
        fork.Process(target=reads, daemon=True).start()
    say_ready()
    while True:
        items.put(1)
        works()


def lock_between_processes():
    lock = fork.Lock()

    def takes_turns():
        while True:
            with lock:
                works()
            works()

    for _ in range(3):
        fork.Process(target=takes_turns, daemon=True).start()
    say_ready()
    takes_turns()


def readers_and_writers():
    """A lock for many readers or one writer, as textbooks build it on a condition."""
    ready, readers = threading.Condition(threading.Lock()), [0]

    def reads():
        with ready:
            readers[0] += 1
        works()
        with ready:
            readers[0] -= 1
            if not readers[0]:
                ready.notify_all()

    def writes():
        while True:
            with ready:
                while readers[0]:
                    ready.wait()
                works()
            time.sleep(STEP_S)

    spawn(writes)
    crowd(reads)


def handed_over():
    """A lock is taken by one thread and released by another, which is legal; a third one waits for it."""
    lock, handed = threading.Lock(), queue.Queue()

    def takes():
        while True:
            lock.acquire()
            handed.put(lock)

    def gives_back():
        while True:
            taken = handed.get()
            time.sleep(1)
            taken.release()

    spawn(takes)
    spawn(gives_back)
    say_ready()
    while True:
        with lock:
            works()
        works()


def lock_as_a_signal():
    """Its only use is that somebody else releases it."""
    done = threading.Lock()

    def works_long():
        time.sleep(1)
        done.release()

    say_ready()
    done.acquire()
    while True:
        spawn(works_long)
        done.acquire()


def given_up_inside_its_block():
    """A thread gives its lock up for a while inside the block and waits for another thread, which takes it by hand."""
    lock, other = threading.Lock(), threading.Lock()

    def gives_up():
        while True:
            with lock:
                lock.release()
                with other:
                    works()
                lock.acquire()

    def takes_by_hand():
        while True:
            lock.acquire()
            time.sleep(1)
            lock.release()
            works()

    def takes_both():
        while True:
            with other:
                works()
                with lock:
                    works()
            works()

    spawn(gives_up)
    spawn(takes_by_hand)
    say_ready()
    takes_both()


def given_up_by_another_name():
    """The same through the lock's methods, kept in variables as hot loops do."""
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def gives_up():
        while True:
            with lock:
                release()
                time.sleep(STEP_S)
                acquire()

    def takes_by_hand():
        while True:
            acquire()
            time.sleep(1)
            release()
            works()

    spawn(gives_up)
    say_ready()
    takes_by_hand()


def unlocked_for_a_while():
    """The same by a context manager, the other way round: inside, the lock is free."""
    lock, other = threading.Lock(), threading.Lock()

    @contextlib.contextmanager
    def unlocked():
        lock.release()
        try:
            yield
        finally:
            lock.acquire()

    def gives_up():
        while True:
            with lock:
                works()
                with unlocked(), other:
                    works()

    def takes_both():
        while True:
            with other:
                works()
                with lock:
                    works()
            works()

    spawn(gives_up)
    spawn(gives_up)
    spawn(takes_both)
    say_ready()
    takes_both()


def given_up_by_a_helper():
    """What looks like a circle for a second at a time: A is inside the block of a lock that it gave up, and waits for
    what B holds, who waits for that lock, which C has taken by hand meanwhile."""
    lock, other, given_up, turn = threading.Lock(), threading.Lock(), threading.Event(), threading.Barrier(3)

    @contextlib.contextmanager
    def unlocked():
        lock.release()
        given_up.set()
        try:
            yield
        finally:
            lock.acquire()

    def gives_up():
        while True:
            turn.wait()
            with lock:
                with unlocked():
                    time.sleep(STEP_S)
                    with other:
                        works()

    def takes_by_hand():
        while True:
            turn.wait()
            given_up.wait()
            lock.acquire()
            time.sleep(1)
            lock.release()
            given_up.clear()

    def takes_both():
        while True:
            turn.wait()
            with other:
                given_up.wait()
                time.sleep(STEP_S / 2)
                with lock:
                    works()

    spawn(gives_up)
    spawn(takes_by_hand)
    say_ready()
    takes_both()


def suspended_generator():
    """A generator is suspended inside its block, and goes on every second."""
    lock = threading.Lock()

    def items():
        while True:
            with lock:
                yield 1
            yield 2

    def contends():
        while True:
            with lock:
                works()
            works()

    spawn(contends)
    say_ready()
    for _ in items():
        time.sleep(1)


def held_across_a_sleep():
    lock = threading.Lock()

    def sleeps():
        while True:
            with lock:
                time.sleep(1)
            works()

    spawn(sleeps)
    say_ready()
    while True:
        with lock:
            pass
        works()


def crossed_with_timeouts():
    """Two threads take two locks in opposite order, and step back when they do not get the second one."""
    first, second = threading.Lock(), threading.Lock()

    def takes(one, two):
        while True:
            with one:
                works()
                if two.acquire(timeout=random.random()):
                    two.release()
            works()

    spawn(takes, first, second)
    say_ready()
    takes(second, first)


def one_late_at_the_barrier():
    meeting = threading.Barrier(4)

    def meets(late_s):
        while True:
            time.sleep(late_s)
            meeting.wait()

    for _ in range(3):
        spawn(meets, 0)
    say_ready()
    meets(1.5)


def pool_that_submits_to_itself():
    """A task waits for another one of the same pool, which has a member left for it."""
    pool = concurrent.futures.ThreadPoolExecutor(4)

    def task():
        pool.submit(time.sleep, 1).result()

    say_ready()
    while True:
        concurrent.futures.wait([pool.submit(task) for _ in range(2)])


if __name__ == "__main__":
    globals()[sys.argv[1]]()
