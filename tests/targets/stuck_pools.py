"""Pools that cannot go on. The first argument names the case; each says "PID TID" of a thread that hangs."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool

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


def in_a_callback():
    """A task is done, and its callback waits for another one of the pool of one, which is being shut down."""
    pool, added, submitted = ThreadPoolExecutor(1), threading.Event(), threading.Event()

    def after(_):
        inner = pool.submit(pow, 2, 3)
        submitted.set()
        park(threading.get_native_id())
        return inner.result()

    pool.submit(added.wait).add_done_callback(after)
    added.set()
    submitted.wait()
    pool.shutdown()


def every_thread():
    """Each of three does the same, in ways of their own."""
    pool, meeting = ThreadPoolExecutor(3, "fetch"), threading.Barrier(3)

    def by_result():
        meeting.wait()
        inner = [pool.submit(pow, 2, n) for n in range(3)]
        park(threading.get_native_id())
        return [each.result() for each in inner]

    def by_wait():
        meeting.wait()
        inner = [pool.submit(pow, 3, n) for n in range(3)]
        return wait(inner)

    def by_completion():
        meeting.wait()
        inner = [pool.submit(pow, 4, n) for n in range(3)]
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


def thread_pool():
    """The same in the other kind of thread pool."""
    pool = ThreadPool(2)
    meeting = threading.Barrier(2)

    def outer(number):
        meeting.wait()
        park(threading.get_native_id())
        return pool.apply(pow, (2, number))

    pool.map(outer, range(2), 1)


def killed(wait_for):
    """A worker is killed with the task in hand; the pool starts another one, which gets nothing to do."""
    reader, writer = os.pipe()
    pool = get_context("fork").Pool(2)
    result = wait_for(pool, writer)
    victim = int(os.read(reader, 32))
    before = {worker.pid for worker in pool._pool}
    os.kill(victim, signal.SIGKILL)
    while {worker.pid for worker in pool._pool} == before or len(pool._pool) < 2:
        time.sleep(0.02)
    park()
    result()


def hold(writer, *_):
    os.write(writer, b"%d" % os.getpid())
    time.sleep(3600)


def killed_apply():
    killed(lambda pool, writer: pool.apply_async(hold, (writer,)).get)


def killed_map():
    killed(lambda pool, writer: pool.map_async(work, [(0, writer), *((n, 0) for n in range(1, 9))], 1).get)


def work(item):
    number, writer = item
    return hold(writer) if writer else number


def killed_imap():
    def begun(pool, writer):
        results = pool.imap(work, [(1, 0), (0, writer), (2, 0)])
        return lambda: list(results)

    killed(begun)


def killed_join():
    def closed(pool, writer):
        pool.apply_async(hold, (writer,))
        pool.close()
        return pool.join

    killed(closed)


def inherited():
    """A pool made at import, used in a forked child: its threads are in the parent."""
    pool = get_context("fork").Pool(2)
    if os.fork():
        os.wait()
    park()
    pool.apply(pow, (2, 3))


def inherited_threads():
    pool = ThreadPool(2)
    if os.fork():
        os.wait()
    park()
    pool.apply(pow, (2, 3))


executor = ThreadPoolExecutor(1)


def inherited_executor():
    """An executor at module level that was used once before the fork."""
    executor.submit(pow, 2, 3).result()
    if os.fork():
        os.wait()
    result = executor.submit(pow, 2, 3)
    park()
    result.result()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
