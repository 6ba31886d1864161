"""Locks that a fork copied while a thread of the parent held them. Says "PID TID" of the child, and the parent lives on."""

import ctypes
import logging
import os
import sys
import threading
import time
from pathlib import Path

from ready import say_ready

libc = ctypes.CDLL(None)
taken = threading.Event()


def keep(take) -> None:
    """A thread called "keeper" takes it and keeps it."""

    def keeper():
        take()
        taken.set()
        time.sleep(600)

    threading.Thread(target=keeper, name="keeper", daemon=True).start()
    taken.wait()


def fork_into(function) -> None:
    child = os.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        function()
        os._exit(0)
    say_ready(f"{child} {child}")
    os.waitpid(child, 0)


def log_handler():
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    keep(handler.acquire)
    logging._at_fork_reinit_lock_weakset.clear()
    fork_into(lambda: logging.getLogger().warning("from the child"))


def rlock():
    lock = threading.RLock()
    keep(lock.acquire)
    fork_into(lock.acquire)


def lock():
    lock = threading.Lock()
    keep(lock.acquire)

    def work():
        with lock:
            pass

    fork_into(work)


def mutex():
    mutex = ctypes.create_string_buffer(64)
    keep(lambda: libc.pthread_mutex_lock(mutex))
    fork_into(lambda: libc.pthread_mutex_lock(mutex))


def import_lock():
    folder = Path(sys.argv[2])
    (folder / "slow_to_import.py").write_text("import slow_import_gate\nslow_import_gate.wait()\n")
    sys.path.insert(0, str(folder))
    gate = type(sys)("slow_import_gate")
    gate.wait = lambda: (taken.set(), time.sleep(600))
    sys.modules["slow_import_gate"] = gate

    def imports():
        import slow_to_import  # noqa: F401

    threading.Thread(target=imports, name="keeper", daemon=True).start()
    taken.wait()
    fork_into(imports)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
