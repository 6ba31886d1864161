"""Healthy families of processes: pools, queues, children. The first argument names the case."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import threading
import time

from ready import say_ready


def works(*_) -> None:
    while True:
        time.sleep(0.3)


def short(_) -> int:
    time.sleep(0.05)
    return os.getpid()


def start(function, *args, context=multiprocessing) -> multiprocessing.Process:
    process = context.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def pool_idle():
    with multiprocessing.Pool(3) as pool:
        pool.map(short, range(6))
        say_ready()
        threading.Event().wait()


def pool_map():
    """Waits for a map whose tasks make progress."""
    with multiprocessing.Pool(2) as pool:
        say_ready()
        pool.map(short, range(100_000), chunksize=1)


def executor_idle():
    with concurrent.futures.ProcessPoolExecutor(3) as pool:
        list(pool.map(short, range(6)))
        say_ready()
        threading.Event().wait()


def executor_result():
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        future = pool.submit(works)
        say_ready()
        future.result()


def spawned():
    context = multiprocessing.get_context("spawn")
    child = start(works, context=context)
    say_ready()
    child.join()


def fork_server():
    context = multiprocessing.get_context("forkserver")
    child = start(works, context=context)
    say_ready()
    child.join()


def _gets(items) -> None:
    while True:
        items.get()


def shared_queue():
    items = multiprocessing.Queue()
    for _ in range(2):
        start(_gets, items)
    items.put(1)
    say_ready()
    threading.Event().wait()


def joinable_queue():
    items = multiprocessing.JoinableQueue()
    start(_gets, items)
    items.put(1)
    say_ready()
    items.join()


def _waits(event) -> None:
    event.wait()


def shared_event():
    event = multiprocessing.Event()
    start(_waits, event)
    say_ready()
    event.wait()


def shared_barrier():
    meeting = multiprocessing.Barrier(3)
    start(_waits, meeting)
    say_ready()
    meeting.wait()


def _takes_turns(lock) -> None:
    while True:
        with lock:
            time.sleep(0.2)
        time.sleep(0.01)


def shared_lock_contended():
    lock = multiprocessing.Lock()
    for _ in range(2):
        start(_takes_turns, lock)
    say_ready()
    _takes_turns(lock)


def manager():
    with multiprocessing.Manager() as server:
        items = server.dict()
        items["a"] = 1
        say_ready()
        threading.Event().wait()


def manager_queue():
    """A blocking get through a manager: both sides wait for an item."""
    with multiprocessing.Manager() as server:
        items = server.Queue()
        say_ready()
        items.get()


def _receives(connection) -> None:
    connection.recv()


def connection_of_a_child():
    mine, theirs = multiprocessing.Pipe()
    start(_receives, theirs)
    say_ready()
    mine.recv()


def connection_polled():
    mine, theirs = multiprocessing.Pipe()
    start(_receives, theirs)
    say_ready()
    while True:
        mine.poll(1)


def sentinels():
    children = [start(works) for _ in range(2)]
    say_ready()
    multiprocessing.connection.wait([child.sentinel for child in children])


def connection_listener():
    with multiprocessing.connection.Listener(f"\0healthy-{os.getpid()}") as listener:
        say_ready()
        listener.accept()


def joins_a_child():
    child = start(works)
    say_ready()
    child.join()


def waits_for_a_program():
    with subprocess.Popen(["sleep", "3600"]) as child:
        say_ready()
        child.wait()


def waits_with_a_timeout():
    with subprocess.Popen(["sleep", "3600"]) as child:
        say_ready()
        child.wait(3600)


def communicates():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        reader = threading.Thread(target=child.stdout.read)
        reader.start()
        say_ready()
        child.stderr.read()


def waits_for_one_that_wrote_much():
    """All that it wrote fits into the pipe, just so."""
    with subprocess.Popen(["sh", "-c", "head -c 65536 /dev/zero; sleep 3600"], stdout=subprocess.PIPE) as child:
        say_ready()
        child.wait()


def under_strace():
    """Held for an instant at every call."""
    code = "import time\nwhile True: time.sleep(0.001)"
    with subprocess.Popen(["strace", "-f", "-o", os.devnull, sys.executable, "-c", code]) as child:
        say_ready()
        child.wait()


def children_that_ended():
    """Zombies that nobody has waited for yet."""
    for _ in range(3):
        if os.fork() == 0:
            os._exit(0)
    say_ready()
    time.sleep(3600)


def shared_semaphore():
    slots = multiprocessing.Semaphore(0)
    start(slots.acquire)
    say_ready()
    slots.acquire()


def _fills(items) -> None:
    while True:
        items.put(1)


def full_queue():
    """Room for one item, and a consumer that takes its time: the queue's counter is a semaphore whose most is 1."""
    items = multiprocessing.Queue(1)
    for _ in range(2):
        start(_fills, items)
    say_ready()
    while True:
        items.get()
        time.sleep(5)


def _raises_a_hand(slots) -> None:
    slots.acquire()


def baton():
    """A semaphore of one, taken by a process that ended, and given back by another one when its time has come."""
    slots = multiprocessing.BoundedSemaphore(1)
    start(_raises_a_hand, slots).join()
    start(_takes_turns, slots)
    say_ready()
    time.sleep(3600)


def gate():
    """A lock as a signal: its holder lets the others start when it likes."""
    lock = multiprocessing.Lock()
    lock.acquire()
    for _ in range(2):
        start(_raises_a_hand, lock)
    say_ready()
    time.sleep(3600)


def own_gate():
    """Waits for its own lock: the child releases it when it is done."""
    lock = multiprocessing.Lock()
    lock.acquire()
    start(works, lock)
    say_ready()
    lock.acquire()


def _waits_in(condition) -> None:
    with condition:
        condition.wait()


def shared_condition():
    condition = multiprocessing.Condition()
    for _ in range(2):
        start(_waits_in, condition)
    say_ready()
    _waits_in(condition)


def _counts(number) -> None:
    while True:
        with number.get_lock():
            number.value += 1
            time.sleep(0.1)


def shared_value():
    number = multiprocessing.Value("i", 0)
    for _ in range(3):
        start(_counts, number)
    say_ready()
    _counts(number)


def pool_idle_spawned():
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(short, range(6))
        say_ready()
        threading.Event().wait()


def pool_idle_of_billiard():
    import billiard

    pool = billiard.Pool(3)
    pool.map(short, range(6))
    say_ready()
    threading.Event().wait()


def several_consumers():
    """Three that wait for an item: one reads the pipe, the others wait for their turn."""
    items = multiprocessing.get_context("forkserver").Queue()
    for _ in range(3):
        start(_gets, items, context=multiprocessing.get_context("forkserver"))
    say_ready()
    time.sleep(3600)


def reads_its_output():
    """The child prints a line now and then."""
    with subprocess.Popen(["sh", "-c", "while sleep 3; do echo tick; done"], stdout=subprocess.PIPE) as child:
        say_ready()
        for _ in child.stdout:
            pass


def runs_to_the_end():
    say_ready()
    subprocess.run(["sleep", "3600"], capture_output=True)


def shell_pipeline():
    say_ready()
    os.system("sleep 3600 | cat")


def waits_for_any_child():
    for _ in range(2):
        if os.fork() == 0:
            os.environ.pop("READY_FD", None)
            works()
    say_ready()
    os.wait()


def prefork_server():
    """A master that restarts workers, and workers that read their orders from a pipe."""
    for _ in range(2):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.environ.pop("READY_FD", None)
            os.close(writer)
            os.read(reader, 4)
            os._exit(0)
        os.close(reader)
    say_ready()
    while True:
        os.waitpid(-1, os.WNOHANG)
        time.sleep(1)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
