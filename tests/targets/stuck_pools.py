"""Pools that cannot go on. The first argument names the case; each says "PID TID" of a thread that hangs."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

from ready import say_ready


def park(tid=None):
    say_ready(f"{os.getpid()} {tid or threading.main_thread().native_id}")


def one_thread():
    """A task that waits for another task of its pool of one."""
    pool = ThreadPoolExecutor(1)

    def outer():
        inner = pool.submit(pow, 2, 3)
        park(threading.get_native_id())
        return inner.result()

    pool.submit(outer).result()


def every_thread():
    """Each of three does the same, in ways of their own."""
    pool, meeting = ThreadPoolExecutor(3, "fetch"), threading.Barrier(3)

    def by_result():
        inner = [pool.submit(pow, 2, n) for n in range(3)]
        meeting.wait()
        park(threading.get_native_id())
        return [each.result() for each in inner]

    def by_wait():
        inner = [pool.submit(pow, 3, n) for n in range(3)]
        meeting.wait()
        return wait(inner)

    def by_completion():
        inner = [pool.submit(pow, 4, n) for n in range(3)]
        meeting.wait()
        return list(as_completed(inner))

    for task in (by_result, by_wait, by_completion):
        pool.submit(task)
    threading.Event().wait()


def each_other():
    """A task of one pool waits for the other pool, whose task waits for the first one's queue."""
    left, right = ThreadPoolExecutor(1, "left"), ThreadPoolExecutor(1, "right")

    def outer():
        return right.submit(middle).result()

    def middle():
        inner = left.submit(pow, 2, 3)
        park(threading.get_native_id())
        return inner.result()

    left.submit(outer).result()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
