"""Locks that several processes share. The first argument names the case, the second the start method.

Says "WAITER [OTHER...]": the process that waits for the lock, and whoever matters beside it.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from ready import say_ready


def number(_) -> int:
    time.sleep(0.05)
    return os.getpid()


def holds(lock) -> None:
    with lock:
        time.sleep(3600)


def waits(lock) -> None:
    with lock:
        pass


def acquires(lock) -> None:
    lock.acquire()


class Account:
    def __init__(self, lock) -> None:
        self.lock = lock

    def take(self) -> None:
        self.lock.acquire()


def takes(lock) -> None:
    Account(lock).take()


def acquires_its_own() -> None:
    everybodys.acquire()


def gets(items) -> None:
    while True:
        items.get()


def crosses(first, second, meeting) -> None:
    with first:
        meeting.wait()
        with second:
            pass


def start(context, function, *args) -> int:
    process = context.Process(target=function, args=args, daemon=True)
    process.start()
    return process.pid


def inside(pid: int, *where: str) -> bool:
    """False of one that is gone: a pool's own thread reaps what was killed, and an exception would end in its terminate(),
    which waits for the lock that the dead reader holds."""
    try:
        wchan = Path(f"/proc/{pid}/wchan").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(part in wchan for part in where)


def until(condition) -> None:
    while not condition():
        time.sleep(0.01)


def kill_reader(pids) -> list[int]:
    """Kills the one that reads the pipe, as soon as all others wait for their turn; answers the others."""

    def readers() -> list[int]:
        return [pid for pid in pids if inside(pid, "pipe_read", "pipe_wait")]

    until(lambda: len(readers()) == 1 and sum(inside(pid, "futex") for pid in pids) == len(pids) - 1)
    (reader,) = readers()
    os.kill(reader, signal.SIGKILL)
    return [pid for pid in pids if pid != reader]


def over(words) -> None:
    say_ready(" ".join(map(str, words)))
    time.sleep(3600)


def pool_reader_killed(context):
    with context.Pool(3) as pool:
        pool.map(number, range(6))
        left = kill_reader([process.pid for process in pool._pool])
        until(lambda: len(pool._pool) == 3 and all(inside(process.pid, "futex") for process in pool._pool))
        over([*left, *(process.pid for process in pool._pool if process.pid not in left)])


def billiard_reader_killed(context):
    import billiard

    pool = billiard.Pool(3)
    pool.map(number, range(6))
    over(kill_reader([process.pid for process in pool._pool]))


def queue_reader_killed(context):
    items = context.Queue()
    readers = [start(context, gets, items) for _ in range(3)]
    over(kill_reader(readers))


def holder_killed(context):
    """Acquired without a `with` block."""
    _killed_before(context, acquires, context.Lock())


def attribute_killed(context):
    _killed_before(context, takes, context.Lock())


def global_killed(context):
    global everybodys
    everybodys = context.Lock()
    _killed_before(context, acquires_its_own)


def _killed_before(context, function, *args):
    lock = args[0] if args else everybodys
    holder = start(context, holds, lock)
    until(lambda: lock._semlock._is_zero())
    waiter = start(context, function, *args)
    until(lambda: inside(waiter, "futex"))
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    over([waiter])


def recursive_holder_killed(context):
    _killed_before(context, acquires, context.RLock())


def held(context):
    lock = context.Lock()
    holder = start(context, holds, lock)
    until(lambda: lock._semlock._is_zero())
    over([start(context, waits, lock), holder])


def crossed(context):
    first, second, meeting = context.Lock(), context.RLock(), context.Barrier(2)
    over([start(context, crosses, first, second, meeting), start(context, crosses, second, first, meeting)])


def own(context):
    lock = context.Lock()
    say_ready(str(os.getpid()))
    with lock, lock:
        pass


if __name__ == "__main__":
    globals()[sys.argv[1]](multiprocessing.get_context(sys.argv[2]))
