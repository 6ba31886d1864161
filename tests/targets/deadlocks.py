"""Locks that nobody can release, and work that nobody does. The first argument names the case; each says "PID TID..."
of the process to look at and of the threads that its comments call A, B, C; K is a thread of the parent.

Comments mark the right answer: the line on which a thread waits, for whose lock, and the `with` line by which a thread
holds what another one waits for. Runs on CPython 3.9 to 3.14.
"""

import concurrent.futures
import ctypes
import gc
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time

from ready import say_ready

libc = ctypes.CDLL(None)
fork = multiprocessing.get_context("fork")


def hang(*functions, after=lambda: None) -> None:
    """Each function in a thread of its own, until the end."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    after()
    say_ready(f"{os.getpid()} {' '.join(str(thread.native_id) for thread in threads)}")
    for thread in threads:
        thread.join()


def crossed_locks():
    left, right, both = threading.Lock(), threading.Lock(), threading.Barrier(2)

    def forwards():
        with left:  # A holds
            meets()

    def meets():
        both.wait()
        with right:  # A waits for B
            pass

    def backwards():
        with right:  # B holds
            both.wait()
            with left:  # B waits for A
                pass

    hang(forwards, backwards)


class Account:
    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()


def ring_of_attributes():
    first, second, third = (Account(name) for name in "abc")
    all_of_them = threading.Barrier(3)

    def from_first():
        with first._lock:  # A holds
            all_of_them.wait()
            with second._lock:  # A waits for B
                pass

    def from_second():
        with second._lock:  # B holds
            all_of_them.wait()
            with third._lock:  # B waits for C
                pass

    def from_third():
        with third._lock:  # C holds
            all_of_them.wait()
            with first._lock:  # C waits for A
                pass

    hang(from_first, from_second, from_third)


def crossed_rlocks():
    left, right, both = threading.RLock(), threading.RLock(), threading.Barrier(2)

    def forwards():
        with left, left:  # A holds
            both.wait()
            with right:  # A waits for B
                pass

    def backwards():
        with right:  # B holds
            both.wait()
            with left:  # B waits for A
                pass

    hang(forwards, backwards)


def entered_by_a_signal_handler():
    lock = threading.Lock()

    def on_signal(*_):
        with lock:  # A waits for A
            pass

    signal.signal(signal.SIGALRM, on_signal)
    say_ready(f"{os.getpid()} {threading.get_native_id()}")
    with lock:  # A holds
        signal.setitimer(signal.ITIMER_REAL, 0.1), signal.pause()


def entered_by_a_finalizer():
    lock = threading.Lock()

    class Cached:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            with lock:  # A waits for A
                pass

    say_ready(f"{os.getpid()} {threading.get_native_id()}")
    Cached()
    with lock:  # A holds
        gc.collect()


def keep(function) -> int:
    """Runs it in a thread until it has called what it is given; the thread's id."""
    taken = threading.Event()
    keeper = threading.Thread(target=function, args=(taken.set,), daemon=True)
    keeper.start()
    taken.wait()
    return keeper.native_id


def fork_into(function, keeper: int, after=lambda: None) -> None:
    child = os.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        function()
        os._exit(0)
    after()
    say_ready(f"{child} {child} {keeper}")
    os.waitpid(child, 0)


def queue_inherited():
    items = queue.Queue()

    def keeper(taken):
        with items.mutex:  # K holds
            taken()
            time.sleep(600)

    fork_into(lambda: items.put(1), keep(keeper))  # A waits for K


def queue_inherited_inside_put():
    class SlowQueue(queue.Queue):
        def _put(self, item):
            item()
            time.sleep(600)

    items = SlowQueue()
    fork_into(lambda: items.put(1), keep(lambda taken: items.put(taken)))  # A waits for K


def queue_inherited_and_released_since():
    items, forked, released = queue.Queue(), threading.Event(), threading.Event()

    def keeper(taken):
        with items.mutex:
            taken()
            forked.wait()
        released.set()
        time.sleep(600)

    fork_into(lambda: items.put(1), keep(keeper), lambda: (forked.set(), released.wait()))  # A waits


def import_lock_inherited():
    folder = tempfile.mkdtemp()
    with open(f"{folder}/slow_to_import.py", "w") as file:
        file.write("import slow_import_gate\nslow_import_gate.wait()\n")
    sys.path.insert(0, folder)
    gate = type(sys)("slow_import_gate")
    sys.modules["slow_import_gate"] = gate

    def imports(taken=None):
        gate.wait = lambda: (taken(), time.sleep(600))
        import slow_to_import  # noqa: F401  # A waits for K

    fork_into(imports, keep(imports))


def crossed_mutexes():
    left, right = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    both = threading.Barrier(2)

    def forwards():
        libc.pthread_mutex_lock(left)
        both.wait()
        libc.pthread_mutex_lock(right)  # A waits for B

    def backwards():
        libc.pthread_mutex_lock(right)
        both.wait()
        libc.pthread_mutex_lock(left)  # B waits for A

    hang(forwards, backwards)


def mutex_inherited():
    mutex = ctypes.create_string_buffer(64)

    def keeper(taken):
        libc.pthread_mutex_lock(mutex)
        taken()
        time.sleep(600)

    fork_into(lambda: libc.pthread_mutex_lock(mutex), keep(keeper))  # A waits for K


def pool_waits_on_itself():
    pool, both, members = concurrent.futures.ThreadPoolExecutor(2), threading.Barrier(3), []

    def task():
        members.append(threading.get_native_id())
        both.wait()
        return pool.submit(print).result()  # A waits, B waits

    futures = [pool.submit(task) for _ in range(2)]
    both.wait()
    say_ready(f"{os.getpid()} {' '.join(map(str, members))}")
    concurrent.futures.wait(futures)


def in_call(pid: int, number: int) -> bool:
    """The process's main thread sleeps inside this system call (x86-64)."""
    with open(f"/proc/{pid}/syscall") as file:
        return file.read().split()[0] == str(number)


def until(condition) -> None:
    while not condition():
        time.sleep(0.02)


def worker_killed_with_the_semaphore():
    """The only idle worker holds the queue's semaphore and reads; its replacement waits for that semaphore."""
    pool = fork.Pool(1)
    first = pool._pool[0].pid
    until(lambda: in_call(first, 0))
    os.kill(first, signal.SIGKILL)
    until(lambda: pool._pool and pool._pool[0].pid != first and in_call(pool._pool[0].pid, 202))
    say_ready(f"{pool._pool[0].pid} {pool._pool[0].pid}")
    time.sleep(600)


def reader_killed_with_the_semaphore():
    """The same of a plain Queue with two readers."""
    items = fork.Queue()
    readers = [fork.Process(target=items.get, daemon=True) for _ in range(2)]
    for reader, number in zip(readers, (0, 202)):
        reader.start()
        until(lambda: in_call(reader.pid, number))
    readers[0].kill()
    readers[0].join()
    say_ready(f"{readers[1].pid} {readers[1].pid}")
    readers[1].join()


started = fork.Event()


def task_for_ever():
    started.set()
    time.sleep(600)


def worker_killed_with_the_task():
    pool = fork.Pool(1)
    first = pool._pool[0].pid
    result = pool.apply_async(task_for_ever)
    started.wait()
    os.kill(first, signal.SIGKILL)
    until(lambda: pool._pool and pool._pool[0].pid != first and in_call(pool._pool[0].pid, 0))
    say_ready(f"{os.getpid()} {os.getpid()}")
    result.get()  # A waits


def held_over_an_await():
    import asyncio

    lock = threading.Lock()

    async def holder():
        with lock:
            await asyncio.sleep(0)

    async def both():
        task = asyncio.ensure_future(holder())
        await asyncio.sleep(0)
        say_ready(f"{os.getpid()} {os.getpid()}")
        with lock:  # A waits
            await task

    asyncio.run(both())


if __name__ == "__main__":
    globals()[sys.argv[1]]()
