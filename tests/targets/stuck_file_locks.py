"""Locks on a file, its path given. Says "PID TID HOLDER"."""

import fcntl
import os
import signal
import sys
import time

from ready import say_ready

path = sys.argv[2]


def twice():
    with open(path, "a") as first, open(path, "a") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        say_ready(f"{os.getpid()} {os.getpid()}")
        fcntl.flock(second, fcntl.LOCK_EX)


def _behind_a_child(take, stop: bool = False):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        with open(path, "a") as file:
            take(file, fcntl.LOCK_EX)
            os.write(writer, b"x")
            time.sleep(600)
    os.read(reader, 1)
    if stop:
        os.kill(child, signal.SIGSTOP)
    with open(path, "a") as file:
        say_ready(f"{os.getpid()} {os.getpid()} {child}")
        take(file, fcntl.LOCK_EX)


def behind_another():
    _behind_a_child(fcntl.flock)


def record_behind_another():
    _behind_a_child(fcntl.lockf)


def behind_a_stopped_one():
    _behind_a_child(fcntl.flock, stop=True)


def crossed():
    reader, writer = os.pipe()
    back_reader, back_writer = os.pipe()
    child = os.fork()
    with open(path, "a") as first, open(path + ".other", "a") as second:
        if child == 0:
            os.environ.pop("READY_FD", None)
            fcntl.flock(second, fcntl.LOCK_EX)
            os.write(writer, b"x")
            os.read(back_reader, 1)
            fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(first, fcntl.LOCK_EX)
        os.read(reader, 1)
        os.write(back_writer, b"x")
        say_ready(f"{os.getpid()} {os.getpid()} {child}")
        fcntl.flock(second, fcntl.LOCK_EX)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
