"""AB-BA over two plain locks, one of them held in every way that code holds a lock. The first argument names the way;
says "PID A B", and comments mark the right answer as in deadlocks.py.

Thread A holds `left` as its function does and calls `inner`, which waits for `right`; thread B holds `right` and waits for `left`.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import sys
import threading

from deadlocks import hang, libc

left, right = threading.Lock(), threading.Lock()
both = threading.Barrier(2)


def inner(*_):
    both.wait()
    with right:  # A waits for B
        pass


def other():
    with right:  # B holds
        both.wait()
        with left:  # B waits for A
            pass


class Base:
    shared = left

    def __init__(self) -> None:
        self.lock = left

    def run(self):
        with self.lock:
            inner()


def attribute():
    owner = Base()
    with owner.lock:  # A holds
        inner()


def class_attribute():
    with Base.shared:  # A holds
        inner()


def module_global():
    with left:  # A holds
        inner()


def dictionary():
    locks = {"accounts": left}
    with locks["accounts"]:  # A holds
        inner()


def list_item():
    locks = [None, left]
    with locks[1]:  # A holds
        inner()


def slots():
    class Slotted:
        __slots__ = ("lock",)

    owner = Slotted()
    owner.lock = left
    with owner.lock:  # A holds
        inner()


def dataclass():
    @dataclasses.dataclass
    class Data:
        lock: object

    owner = Data(left)
    with owner.lock:  # A holds
        inner()


def condition():
    turn = threading.Condition(left)
    with turn:  # A holds
        inner()


def one_line():
    first = threading.Lock()
    with first, left, open("/dev/null") as file:  # A holds
        inner(file)


def nested_function():
    def outer():
        def innermost():
            with left:  # A holds
                inner()

        innermost()

    outer()


def method_through_super():
    class Derived(Base):
        def run(self):
            inner()

        def start(self):
            with self.lock:  # A holds
                self.run()

    class Further(Derived):
        def start(self):
            super().start()

    Further().start()


def generator():
    def items():
        with left:  # A holds
            yield 1
            inner()
            yield 2

    list(items())


def suspended_generator():
    """The generator that holds the lock is suspended: its frame is on no thread's stack."""

    def items():
        with left:
            yield 1

    kept = items()
    next(kept)
    inner()


def around_yield_from():
    def items():
        inner()
        yield 1

    def delegates():
        with left:  # A holds
            yield from items()

    list(delegates())


def inside_try_finally():
    try:
        with left:  # A holds
            try:
                inner()
            finally:
                print("done")
    finally:
        print("done")


def inside_finally():
    try:
        print("begins")
    finally:
        with left:  # A holds
            inner()


def inside_except():
    try:
        raise KeyError
    except KeyError as error:
        with left:  # A holds
            inner(error)


def inside_for():
    for first in range(3):
        for second in (1, 2):
            with left:  # A holds
                for third in "abc":
                    inner(first, second, third)


def around_comprehension():
    with left:  # A holds
        print([inner(item) for item in range(3)])


def inside_expression():
    def takes():
        with left:  # A holds
            return 1 + inner()

    print(1, 2, {"a": [3, takes()]})


def many_locals():
    a = b = c = d = e = f = g = h = i = j = k = m = n = o = p = q = object()
    cell = [a, b, c, d]
    closure = lambda: (cell, e, f)  # noqa: E731
    with left:  # A holds
        inner(closure, g, h, i, j, k, m, n, o, p, q)


def c_frame_between():
    def by(item):
        return inner(item)

    with left:  # A holds
        functools.reduce(lambda _, item: sorted([item, item], key=by), [1, 2], 0)


def recursion():
    def descends(depth):
        if depth:
            descends(depth - 1)
        else:
            with left:  # A holds
                inner()

    descends(200)


def entered_before_an_error():
    """A with block of another lock was left by an exception before."""
    try:
        with threading.Lock():
            raise ValueError
    except ValueError:
        pass
    with left:  # A holds
        inner()


def as_target():
    with left as taken:  # A holds
        inner(taken)


def coroutine():
    async def works():
        with left:  # A holds
            inner()

    asyncio.run(works())


def exit_stack():
    with contextlib.ExitStack() as stack:
        stack.enter_context(left)
        inner()


def context_manager():
    @contextlib.contextmanager
    def locked():
        with left:
            yield

    with locked():
        inner()


def acquired_by_hand():
    left.acquire()
    try:
        inner()
    finally:
        left.release()


def acquired_in_another_function():
    class Guard:
        def __enter__(self):
            left.acquire()

        def __exit__(self, *_):
            left.release()

    with Guard():
        inner()


def four_behind():
    def waits():
        with left:
            pass

    with left:  # A holds
        for _ in range(4):
            threading.Thread(target=waits).start()
        inner()


def three_kinds():
    """A circle over a Lock, an RLock and a pthread mutex."""
    recursive, mutex, all_of_them = threading.RLock(), ctypes.create_string_buffer(64), threading.Barrier(3)

    def first():
        with left:  # A holds
            all_of_them.wait()
            with recursive:  # A waits for B
                pass

    def second():
        with recursive:  # B holds
            all_of_them.wait()
            libc.pthread_mutex_lock(mutex)  # B waits for C

    def third():
        libc.pthread_mutex_lock(mutex)
        all_of_them.wait()
        with left:  # C waits for A
            pass

    hang(first, second, third)


if __name__ == "__main__":
    if sys.argv[1] == "three_kinds":
        three_kinds()
    else:
        hang(globals()[sys.argv[1]], other)
