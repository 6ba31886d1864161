"""Hangs below C code: FUNCTION of a LIBRARY is called from Python, or a C function calls back into Python.

Usage: stuck_native.py CASE [LIBRARY FUNCTION]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

from ready import say_ready


def calls(library: str, function: str) -> None:
    hang = getattr(ctypes.CDLL(library), function)
    say_ready(f"{os.getpid()} {threading.get_native_id()}")
    hang()


def compares() -> None:
    """Python in C in Python in C: qsort calls the comparison, which locks a mutex twice."""
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def lock_twice() -> None:
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)

    def order(_left: int, _right: int) -> int:
        lock_twice()
        return 0

    say_ready(f"{os.getpid()} {threading.get_native_id()}")
    libc.qsort((ctypes.c_int * 2)(2, 1), 2, 4, compare(order))


def holds() -> None:
    """A thread waits for a mutex whose holder is in C code for ever."""
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)
    held = threading.Event()

    def hold() -> None:
        libc.pthread_mutex_lock(mutex)
        held.set()
        libc.poll(None, 0, -1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    say_ready(f"{os.getpid()} {threading.get_native_id()} {holder.native_id}")
    libc.pthread_mutex_lock(mutex)


def handles() -> None:
    """A handler in C (abort's) would not return; this one is sleep's, run by the kernel in the middle of a sleep."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    # pause(2) ignores the argument that a handler is called with.
    libc.signal(signal.SIGUSR2, ctypes.cast(libc.pause, ctypes.c_void_p))
    say_ready(f"{os.getpid()} {threading.get_native_id()}")
    libc.sleep(3600)


def spins() -> None:
    say_ready(f"{os.getpid()} {threading.get_native_id()}")
    while True:
        pass


if __name__ == "__main__":
    {"calls": calls, "compares": compares, "holds": holds, "handles": handles, "spins": spins}[sys.argv[1]](
        *sys.argv[2:]
    )
