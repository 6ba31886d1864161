"""Healthy processes whose threads are parked, contend for locks or work. The first argument names the case."""

import concurrent.futures
import ctypes
import hashlib
import logging
import logging.handlers
import os
import queue
import re
import sched
import sqlite3
import sys
import tempfile
import threading
import time

from ready import say_ready

STEP_S = 0.3


def works() -> None:
    """A worker that makes progress, in short steps."""
    while True:
        time.sleep(STEP_S)


def spawn(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def event_alone():
    say_ready()
    threading.Event().wait()


def event_with_timeout():
    say_ready()
    threading.Event().wait(3600)


def event_in_many_threads():
    event = threading.Event()
    for _ in range(8):
        spawn(event.wait)
    say_ready()
    event.wait()


def condition():
    turn = threading.Condition()
    say_ready()
    with turn:
        turn.wait()


def condition_behind_another():
    turn = threading.Condition()

    def waits():
        with turn:
            turn.wait_for(lambda: False)

    spawn(waits)
    say_ready()
    waits()


def condition_ping_pong():
    turn, whose = threading.Condition(), [0]

    def plays(me: int):
        while True:
            with turn:
                turn.wait_for(lambda: whose[0] == me)
                time.sleep(0.05)
                whose[0] = 1 - me
                turn.notify_all()

    spawn(plays, 1)
    say_ready()
    plays(0)


def barrier():
    """One of three parties comes late: it works first."""
    meeting = threading.Barrier(3)
    spawn(works)
    spawn(meeting.wait)
    say_ready()
    meeting.wait()


def semaphore():
    """The slots are taken by threads that work."""
    slots = threading.BoundedSemaphore(2)

    def holds():
        with slots:
            works()

    spawn(holds)
    spawn(holds)
    time.sleep(0.1)
    say_ready()
    with slots:
        pass


def queue_get():
    say_ready()
    queue.Queue().get()


def queue_get_polling():
    """As Celery's and many workers' main loops do."""
    items: queue.Queue = queue.Queue()
    say_ready()
    while True:
        try:
            items.get(timeout=1)
        except queue.Empty:
            continue


def simple_queue():
    items: queue.SimpleQueue = queue.SimpleQueue()
    for _ in range(3):
        spawn(items.get)
    say_ready()
    items.get()


def queue_join():
    items: queue.Queue = queue.Queue()

    def consumes():
        while True:
            items.get()
            time.sleep(STEP_S)
            items.task_done()

    for number in range(10_000):
        items.put(number)
    spawn(consumes)
    say_ready()
    items.join()


def queue_full():
    """The producer waits for room; the consumer is slow, and alive."""
    items: queue.Queue = queue.Queue(2)

    def consumes():
        while True:
            items.get()
            time.sleep(STEP_S)

    spawn(consumes)
    say_ready()
    while True:
        items.put(b"x")


def join_a_worker():
    worker = spawn(works)
    say_ready()
    worker.join()


def join_an_idle_one():
    """The main thread of many daemons: it only waits for a thread that waits for work."""
    worker = spawn(queue.Queue().get)
    say_ready()
    worker.join()


def exit_waits_for_threads():
    """The interpreter waits at exit for a thread that works."""
    threading.Thread(target=works).start()
    say_ready()


def timer():
    threading.Timer(3600, print).start()
    say_ready()


def executor_idle():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: time.sleep(0.05), range(8)))
        say_ready()
        threading.Event().wait()


def executor_result():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        future = pool.submit(works)
        say_ready()
        future.result()


def executor_as_completed():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(time.sleep, STEP_S) for _ in range(2000)]
        say_ready()
        for _ in concurrent.futures.as_completed(futures):
            pass


def executor_shutdown():
    """A warm shutdown: it waits for a long task."""
    pool = concurrent.futures.ThreadPoolExecutor(2)
    pool.submit(works)
    say_ready()
    pool.shutdown()


def lock_contended():
    """Four threads take turns at one lock."""
    lock = threading.Lock()

    def takes_turns():
        while True:
            with lock:
                time.sleep(STEP_S)
            time.sleep(0.01)

    for _ in range(3):
        spawn(takes_turns)
    say_ready()
    takes_turns()


def rlock_contended():
    lock = threading.RLock()

    def takes_turns():
        while True:
            with lock, lock:
                time.sleep(STEP_S)
            time.sleep(0.01)

    for _ in range(3):
        spawn(takes_turns)
    say_ready()
    takes_turns()


def mutexes_contended():
    """Two pthread mutexes, always in the same order."""
    libc = ctypes.CDLL(None)
    first, second = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)

    def takes_turns():
        while True:
            libc.pthread_mutex_lock(first)
            libc.pthread_mutex_lock(second)
            time.sleep(0.1)
            libc.pthread_mutex_unlock(second)
            libc.pthread_mutex_unlock(first)
            time.sleep(0.01)

    spawn(takes_turns)
    spawn(takes_turns)
    say_ready()
    takes_turns()


def pthread_condition():
    """A native library's idle thread."""
    libc = ctypes.CDLL(None)
    mutex, turn = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)

    def waits():
        libc.pthread_mutex_lock(mutex)
        libc.pthread_cond_wait(turn, mutex)

    spawn(waits)
    say_ready()
    waits()


def posix_semaphore():
    libc = ctypes.CDLL(None)
    slots = ctypes.create_string_buffer(64)
    libc.sem_init(slots, 0, 0)
    say_ready()
    libc.sem_wait(slots)


def read_lock_shared():
    """Readers of a pthread rwlock that a writer gives up now and then."""
    libc = ctypes.CDLL(None)
    lock = ctypes.create_string_buffer(64)

    def reads():
        while True:
            libc.pthread_rwlock_rdlock(lock)
            libc.pthread_rwlock_unlock(lock)
            time.sleep(0.01)

    spawn(reads)
    spawn(reads)
    say_ready()
    while True:
        libc.pthread_rwlock_wrlock(lock)
        time.sleep(STEP_S)
        libc.pthread_rwlock_unlock(lock)
        time.sleep(STEP_S)


def lock_as_a_signal():
    """A lock that another thread releases: the waiter waits for news, and the other one makes progress."""
    news = threading.Lock()

    def tells():
        while True:
            time.sleep(STEP_S)
            if news.locked():
                news.release()

    spawn(tells)
    say_ready()
    while True:
        news.acquire()


def log_listener():
    records: queue.Queue = queue.Queue()
    logging.getLogger().addHandler(logging.handlers.QueueHandler(records))
    logging.handlers.QueueListener(records, logging.NullHandler()).start()
    say_ready()
    threading.Event().wait()


def scheduler():
    agenda = sched.scheduler()
    agenda.enter(3600, 1, print)
    say_ready()
    agenda.run()


def sleeps():
    say_ready()
    time.sleep(3600)


def retries():
    """Sleeps ever longer between attempts."""
    say_ready()
    for attempt in range(100):
        time.sleep(min(2.0**attempt, 600))


def short_sleeps():
    say_ready()
    while True:
        time.sleep(0.02)


def computes():
    os.nice(19)
    say_ready()
    number = 0
    while True:
        number = (number * 1103515245 + 12345) % 2147483648


def computes_in_c():
    os.nice(19)
    data = b"x" * 30_000_000
    say_ready()
    while True:
        hashlib.sha256(data).hexdigest()


def computes_in_a_regex():
    """One C call that keeps the GIL for ages, on the CPU; another thread waits for it."""
    os.nice(19)
    spawn(short_sleeps)
    re.match(r"(a+)+$", "a" * 60 + "b")


def serves_inside_an_import():
    """A module that never finishes importing, because it is the program."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        with open(f"{folder}/program.py", "w") as file:
            file.write("import threading\nthreading.Event().wait()\n")
        say_ready()
        __import__("program")


def computes_in_threads():
    """Threads that want the GIL all the time."""
    os.nice(19)

    def counts():
        while True:
            sum(range(10_000))

    spawn(counts)
    spawn(counts)
    say_ready()
    threading.Event().wait()


def computes_and_locks():
    """Short critical sections around a computation: thousands of futexes, all of them useful."""
    os.nice(19)
    lock = threading.Lock()

    def counts():
        while True:
            with lock:
                sum(range(2000))

    spawn(counts)
    say_ready()
    counts()


def writes_a_file():
    os.nice(19)
    say_ready()
    with open(os.devnull, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
            time.sleep(0.01)


def sleeps_in_c():
    """A C library that sleeps, with the GIL released."""
    spawn(works)
    say_ready()
    ctypes.CDLL(None).sleep(3600)


def database_busy():
    """SQLite tries again while another connection holds its write lock, with pauses."""
    first, second = (sqlite3.connect(sys.argv[2], timeout=3600, isolation_level=None) for _ in range(2))
    first.execute("create table if not exists t (x)")
    first.execute("begin immediate")
    say_ready()
    second.execute("begin immediate")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
