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
    with right:
        both.wait()
        with left:  # B waits for A, B holds
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
    with owner.lock:
        inner()  # A holds


def class_attribute():
    with Base.shared:
        inner()  # A holds


def module_global():
    with left:
        inner()  # A holds


def dictionary():
    locks = {"accounts": left}
    with locks["accounts"]:
        inner()  # A holds


def list_item():
    locks = [None, left]
    with locks[1]:
        inner()  # A holds


def slots():
    class Slotted:
        __slots__ = ("lock",)

    owner = Slotted()
    owner.lock = left
    with owner.lock:
        inner()  # A holds


def dataclass():
    @dataclasses.dataclass
    class Data:
        lock: object

    owner = Data(left)
    with owner.lock:
        inner()  # A holds


def condition():
    turn = threading.Condition(left)
    with turn:
        inner()  # A holds


def one_line():
    first = threading.Lock()
    with first, left, open("/dev/null") as file:
        inner(file)  # A holds


def nested_function():
    def outer():
        def innermost():
            with left:
                inner()  # A holds

        innermost()

    outer()


def method_through_super():
    class Derived(Base):
        def run(self):
            inner()

        def start(self):
            with self.lock:
                self.run()  # A holds

    class Further(Derived):
        def start(self):
            super().start()

    Further().start()


def generator():
    def items():
        with left:
            yield 1
            inner()  # A holds
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
        with left:
            yield from items()  # A holds

    list(delegates())


def inside_try_finally():
    try:
        with left:
            try:
                inner()  # A holds
            finally:
                print("done")
    finally:
        print("done")


def inside_finally():
    try:
        print("begins")
    finally:
        with left:
            inner()  # A holds


def inside_except():
    try:
        raise KeyError
    except KeyError as error:
        with left:
            inner(error)  # A holds


def inside_for():
    for first in range(3):
        for second in (1, 2):
            with left:
                for third in "abc":
                    inner(first, second, third)  # A holds


def around_comprehension():
    with left:
        print([inner(item) for item in range(3)])  # A holds


def inside_expression():
    def takes():
        with left:
            return 1 + inner()  # A holds

    print(1, 2, {"a": [3, takes()]})


def many_locals():
    a = b = c = d = e = f = g = h = i = j = k = m = n = o = p = q = object()
    cell = [a, b, c, d]
    closure = lambda: (cell, e, f)  # noqa: E731
    with left:
        inner(closure, g, h, i, j, k, m, n, o, p, q)  # A holds


def c_frame_between():
    def by(item):
        return inner(item)

    with left:
        functools.reduce(lambda _, item: sorted([item, item], key=by), [1, 2], 0)  # A holds


def recursion():
    def descends(depth):
        if depth:
            descends(depth - 1)
        else:
            with left:
                inner()  # A holds

    descends(200)


def entered_before_an_error():
    """A with block of another lock was left by an exception before."""
    try:
        with threading.Lock():
            raise ValueError
    except ValueError:
        pass
    with left:
        inner()  # A holds


def as_target():
    with left as taken:
        inner(taken)  # A holds


def coroutine():
    async def works():
        with left:
            inner()  # A holds

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

    with left:
        for _ in range(4):
            threading.Thread(target=waits).start()
        inner()  # A holds


def three_kinds():
    """A circle over a Lock, an RLock and a pthread mutex."""
    recursive, mutex, all_of_them = threading.RLock(), ctypes.create_string_buffer(64), threading.Barrier(3)

    def first():
        with left:
            all_of_them.wait()
            with recursive:  # A waits for B, A holds
                pass

    def second():
        with recursive:
            all_of_them.wait()
            libc.pthread_mutex_lock(mutex)  # B waits for C, B holds

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
