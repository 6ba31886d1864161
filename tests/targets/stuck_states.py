"""Processes that do not run, or run for nothing. Says "PID TID"."""

import ctypes
import os
import select
import signal
import sys
import threading
import time

from ready import say_ready

CLONE_VFORK, SYS_CLONE = 0x4000, 56


def say() -> None:
    say_ready(f"{os.getpid()} {os.getpid()}")


def yields():
    say()
    while True:
        os.sched_yield()


def polls_for_nothing():
    epoll = select.epoll()
    reader, writer = os.pipe()
    epoll.register(reader, select.EPOLLIN)
    say()
    while writer:
        epoll.poll(0)


def stops():
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    say()
    os.kill(os.getpid(), signal.SIGSTOP)


def holds_the_gil():
    def beats():
        while True:
            time.sleep(0.01)

    threading.Thread(target=beats, name="heartbeat", daemon=True).start()
    say()
    ctypes.PyDLL(None).sleep(600)


def vforks():
    """Sleeps without reacting to signals until its child runs a program, which this one never does."""
    say()
    if ctypes.CDLL(None).syscall(SYS_CLONE, CLONE_VFORK | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        ctypes.CDLL(None).sleep(600)
        os._exit(0)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
