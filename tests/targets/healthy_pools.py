"""Pools that look stuck and are not: each function is one program that runs until it is killed."""

import asyncio
import contextlib
import queue
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool

from ready import say_ready

LONG_S = 3600


def idle_executor():
    pool = ThreadPoolExecutor(4)
    list(pool.map(abs, range(8)))
    say_ready()
    threading.Event().wait()


def waits_for_a_pool_that_works():
    """All members of one pool wait for another one, whose one member is busy for long."""
    outer, inner = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
    inner.submit(time.sleep, LONG_S)
    results = [outer.submit(lambda: inner.submit(pow, 2, 3).result()) for _ in range(4)]
    say_ready()
    wait(results)


def queued_behind_a_long_one():
    pool = ThreadPoolExecutor(1)
    pool.submit(time.sleep, LONG_S)
    result = pool.submit(pow, 2, 3)
    say_ready()
    result.result()


def a_pool_that_may_grow():
    """A task waits for a task of its own pool, and there are members to spare."""
    pool = ThreadPoolExecutor(4)

    def inner():
        time.sleep(LONG_S)

    result = pool.submit(lambda: pool.submit(inner).result())
    say_ready()
    result.result()


def with_a_timeout():
    """It waits for its own queue, but for two seconds at a time, and then does it itself."""
    pool = ThreadPoolExecutor(1)

    def outer():
        while True:
            with contextlib.suppress(Exception):
                pool.submit(pow, 2, 3).result(timeout=2)

    say_ready()
    pool.submit(outer).result()


def the_first_of_two():
    """It waits for whichever comes first: one is queued behind it, the other is worked on elsewhere."""
    pool, other = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def outer():
        return wait([pool.submit(pow, 2, 3), other.submit(time.sleep, LONG_S)], return_when=FIRST_COMPLETED)

    result = pool.submit(outer)
    say_ready()
    result.result()


def shut_down_while_it_works():
    pool = ThreadPoolExecutor(2)
    pool.submit(time.sleep, LONG_S)
    say_ready()
    pool.shutdown(wait=True)


def completions_of_running_ones():
    pool = ThreadPoolExecutor(2)
    futures = [pool.submit(time.sleep, LONG_S + n) for n in range(4)]
    say_ready()
    list(as_completed(futures))


def a_future_of_its_own():
    """Nobody knows who sets it."""
    from concurrent.futures import Future

    future = Future()
    threading.Timer(LONG_S, future.set_result, (1,)).start()
    say_ready()
    future.result()


def run_in_executor():
    async def main():
        loop = asyncio.get_running_loop()
        work = [loop.run_in_executor(None, time.sleep, LONG_S) for _ in range(50)]
        say_ready()
        await asyncio.gather(*work)

    asyncio.run(main())


def asks_the_loop():
    """Every thread of the loop's pool waits for a coroutine of that loop, which sleeps."""

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))

        def work():
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(LONG_S), loop).result()

        tasks = [loop.run_in_executor(None, work) for _ in range(4)]
        say_ready()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def process_pool_at_work():
    with get_context("fork").Pool(2) as pool:
        result = pool.map_async(time.sleep, [LONG_S] * 8, 1)
        say_ready()
        result.get()


def process_pool_of_short_tasks():
    """Results go back and forth all the time, while the parent waits for all of them."""
    with get_context("fork").Pool(2) as pool:
        say_ready()
        pool.map(_short, range(1_000_000), 1)


def _short(number):
    time.sleep(0.01 * (number % 3))
    return number


def workers_replaced_all_the_time():
    with get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        say_ready()
        pool.map(_short, range(1_000_000), 1)


def a_slow_consumer():
    with get_context("fork").Pool(2) as pool:
        results = pool.imap(abs, range(1_000_000))
        next(results)
        say_ready()
        for _ in results:
            time.sleep(0.05)


def tasks_that_come_slowly():
    """The pool's task handler waits for the program's own generator, and the program for the next result."""

    def tasks():
        yield 1
        time.sleep(LONG_S)
        yield 2

    with get_context("fork").Pool(2) as pool:
        results = pool.imap(abs, tasks())
        next(results)
        say_ready()
        next(results)


def idle_process_pool():
    with get_context("fork").Pool(3) as pool:
        pool.map(abs, range(9))
        say_ready()
        threading.Event().wait()


def closed_process_pool_at_work():
    pool = get_context("fork").Pool(2)
    pool.apply_async(time.sleep, (LONG_S,))
    pool.close()
    say_ready()
    pool.join()


def thread_pool_at_work():
    with ThreadPool(2) as pool:
        result = pool.map_async(time.sleep, [LONG_S] * 8, 1)
        say_ready()
        result.get()


def process_executor_at_work():
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        results = [pool.submit(time.sleep, LONG_S) for _ in range(6)]
        say_ready()
        wait(results)


class _Jobs:
    """A queue of jobs that calls itself a pool: its idle consumers have their last jobs in variables."""

    def __init__(self):
        self.queue, self.max_clients = queue.Queue(maxsize=2), 2

    def acquire(self):
        return self.queue.get()


class _Job:
    pass


def _consumed(consumer) -> None:
    jobs = _Jobs()
    for _ in range(2):
        threading.Thread(target=consumer, args=(jobs,), daemon=True).start()
    for _ in range(20):
        jobs.queue.put(_Job())
    while not jobs.queue.empty():
        time.sleep(0.02)
    say_ready()
    threading.Event().wait()


def consumers_of_a_pool():
    def consumer(jobs):
        while True:
            job = jobs.acquire()
            time.sleep(0.001 if job else 0)

    _consumed(consumer)


def consumers_with_a_function_between():
    def fetch(jobs):
        return jobs.acquire()

    def consumer(jobs):
        while True:
            job = fetch(jobs)
            time.sleep(0.001 if job else 0)

    _consumed(consumer)


def consumers_with_a_walrus():
    def consumer(jobs):
        while (job := jobs.acquire()) is not None:
            last = job
            time.sleep(0.001 if last else 0)

    _consumed(consumer)


def consumers_of_an_iterator():
    def consumer(jobs):
        for job in iter(jobs.acquire, None):
            time.sleep(0.001 if job else 0)

    _consumed(consumer)


def consumers_over_two_lines():
    def consumer(jobs):
        while True:
            job = jobs.acquire()
            time.sleep(0.001 if job else 0)

    _consumed(consumer)


class _Connections:
    def __init__(self, size):
        self.max_size, self.free, self.used = size, [_Job() for _ in range(size)], set()
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def connection(self):
        with self.changed:
            while not self.free:
                self.changed.wait()
            connection = self.free.pop()
            self.used.add(connection)
        try:
            yield connection
        finally:
            with self.changed:
                self.used.remove(connection)
                self.free.append(connection)
                self.changed.notify()


def connections_at_work():
    """All are out, each with a thread that works in short steps; a third one waits for its turn."""
    pool = _Connections(2)

    def works():
        with pool.connection():
            while True:
                time.sleep(0.2)

    for _ in range(2):
        threading.Thread(target=works, daemon=True).start()
    while len(pool.used) < 2:
        time.sleep(0.02)
    say_ready()
    with pool.connection():
        pass


def connections_that_come_and_go():
    pool = _Connections(2)

    def works():
        while True:
            with pool.connection():
                time.sleep(0.05)

    for _ in range(6):
        threading.Thread(target=works, daemon=True).start()
    say_ready()
    threading.Event().wait()


def one_connection_each():
    """Two threads have one each and wait for something else; a third one waits for one, and has none."""
    pool = _Connections(2)

    def works():
        with pool.connection():
            while True:
                time.sleep(0.2)

    def asks(turn):
        with pool.connection():
            turn.wait()

    turn = threading.Event()
    for _ in range(2):
        threading.Thread(target=works, daemon=True).start()
    while len(pool.used) < 2:
        time.sleep(0.02)
    for _ in range(4):
        threading.Thread(target=asks, args=(turn,), daemon=True).start()
    say_ready()
    turn.wait()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
