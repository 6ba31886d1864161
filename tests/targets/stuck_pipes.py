"""Pipes whose other end will never read, write or close. Says "PID TID" of who hangs."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from ready import say_ready


def orphans_of_a_pool():
    """The pool's parent is killed; says the pids of its workers. Needs a parent that outlives it: this process."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.environ.pop("READY_FD", None)
        os.close(reader)
        with ProcessPoolExecutor(3) as pool:
            futures = [pool.submit(time.sleep, 0.3) for _ in range(3)]
            for future in futures:
                future.result()
            os.write(writer, f"{' '.join(map(str, pool._processes))}\n".encode())
            time.sleep(600)
    os.close(writer)
    workers = os.read(reader, 1000).decode().split()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    say_ready(" ".join(workers))
    time.sleep(600)


def child_with_a_full_pipe():
    child = subprocess.Popen([sys.executable, "-c", "print('x' * 1_000_000)"], stdout=subprocess.PIPE)
    say_ready(f"{os.getpid()} {os.getpid()} {child.pid}")
    child.wait()


def own_write_end():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"done")
        os._exit(0)
    os.wait()
    os.read(reader, 4)
    say_ready(f"{os.getpid()} {os.getpid()}")
    os.read(reader, 1)


def own_read_end():
    reader, writer = os.pipe()
    say_ready(f"{os.getpid()} {os.getpid()}")
    os.write(writer, b"x" * 100_000)
    os.close(reader)


def _with_a_stopped_child(parent_does, closes: int):
    pipe = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        time.sleep(600)
    os.kill(child, signal.SIGSTOP)
    os.close(pipe[closes])
    say_ready(f"{os.getpid()} {os.getpid()}")
    parent_does(pipe[1 - closes])


def stopped_reader():
    _with_a_stopped_child(lambda fd: os.write(fd, b"x" * 100_000), 0)


def stopped_writer():
    _with_a_stopped_child(lambda fd: os.read(fd, 1), 1)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
