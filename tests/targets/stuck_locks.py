"""Locks that cannot be had. The first argument names the case; each says "PID TID..." of the threads that hang."""

import concurrent.futures
import ctypes
import gc
import http.client
import os
import queue
import signal
import socket
import sys
import threading
import time

from ready import say_ready

libc = ctypes.CDLL(None)


def new_mutex() -> ctypes.Array:
    return ctypes.create_string_buffer(64)


def hang(*functions) -> None:
    """Each function in a thread of its own, until the end."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    say_ready(f"{os.getpid()} {' '.join(str(thread.native_id) for thread in threads)}")
    for thread in threads:
        thread.join()


def crossed(first, second):
    """Two functions that take the two in opposite order and meet in the middle."""
    meeting = threading.Barrier(2)

    def takes(one, other):
        one()
        meeting.wait()
        other()

    return lambda: takes(first, second), lambda: takes(second, first)


def mutex_twice():
    mutex = new_mutex()

    def callback():
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)

    hang(callback)


def mutexes_crossed():
    left, right = new_mutex(), new_mutex()
    hang(*crossed(lambda: libc.pthread_mutex_lock(left), lambda: libc.pthread_mutex_lock(right)))


def mutexes_in_a_ring():
    ring = [new_mutex() for _ in range(4)]
    meeting = threading.Barrier(len(ring))

    def takes(index):
        libc.pthread_mutex_lock(ring[index])
        meeting.wait()
        libc.pthread_mutex_lock(ring[(index + 1) % len(ring)])

    hang(*(lambda index=index: takes(index) for index in range(len(ring))))


def rlocks_crossed():
    left, right = threading.RLock(), threading.RLock()
    hang(*crossed(left.acquire, right.acquire))


def locks_crossed():
    left, right, meeting = threading.Lock(), threading.Lock(), threading.Barrier(2)

    def forwards():
        with left:
            meeting.wait()
            with right:
                pass

    def backwards():
        with right:
            meeting.wait()
            with left:
                pass

    hang(forwards, backwards)


def rlock_and_mutex_crossed():
    mutex, recursive = new_mutex(), threading.RLock()
    hang(*crossed(lambda: libc.pthread_mutex_lock(mutex), recursive.acquire))


def lock_twice():
    lock = threading.Lock()
    say_ready(f"{os.getpid()} {os.getpid()}")
    with lock, lock:
        pass


def _held_while(wait):
    lock, taken = threading.RLock(), threading.Event()

    def holder():
        with lock:
            taken.set()
            wait()

    def waiter():
        taken.wait()
        with lock:
            pass

    hang(waiter, holder)


def held_by_a_receiver():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    _held_while(lambda: client.recv(100))
    peer.close()


def held_by_a_sleeper():
    _held_while(lambda: time.sleep(600))


def ended_owner():
    mutex = new_mutex()
    owner = threading.Thread(target=libc.pthread_mutex_lock, args=(mutex,))
    owner.start()
    owner.join()
    hang(lambda: libc.pthread_mutex_lock(mutex))


class Registry:
    lock = threading.Lock()

    def update(self, then):
        with self.lock:  # holds
            then()


def entered_by_a_handler():
    def on_signal(*_):
        with Registry.lock:  # waits
            pass

    signal.signal(signal.SIGUSR1, on_signal)
    say_ready(f"{os.getpid()} {os.getpid()}")
    Registry().update(lambda: os.kill(os.getpid(), signal.SIGUSR1))


def entered_by_a_finaliser():
    class Connection:
        def __del__(self):
            with Registry.lock:  # waits
                pass

    circular = Connection()
    circular.itself = circular
    del circular
    say_ready(f"{os.getpid()} {os.getpid()}")
    Registry().update(gc.collect)


def entered_by_a_call():
    def inner():
        with Registry.lock:  # waits
            pass

    hang(lambda: Registry().update(inner))


def awaits_a_result_under_a_lock():
    pool, started = concurrent.futures.ThreadPoolExecutor(4), queue.SimpleQueue()

    def task():
        started.put(threading.get_native_id())
        with Registry.lock:
            pass

    def ask():
        result = pool.submit(task)
        say_ready(f"{os.getpid()} {os.getpid()} {started.get()}")
        result.result()

    Registry().update(ask)


def silent_server():
    """The address of a server in a process of its own, which takes every request and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if os.fork() == 0:
            client, _ = listener.accept()
            while client.recv(100):
                pass
            os._exit(0)
        return listener.getsockname()


def _readers_behind(request):
    class Cache:
        def __init__(self):
            self.lock, self.taken = threading.Lock(), threading.Event()

        def refresh(self):
            with self.lock:  # holds
                self.taken.set()
                request()

        def get(self):
            self.taken.wait()
            with self.lock:  # waits
                pass

    cache = Cache()
    hang(cache.refresh, cache.get, cache.get, cache.get)


def behind_a_silent_server():
    client = socket.create_connection(silent_server())

    def ask():
        client.sendall(b"what is the time?\r\n")
        client.recv(100)

    _readers_behind(ask)


def behind_a_silent_web_server():
    client = http.client.HTTPConnection(*silent_server())

    def ask():
        client.request("GET", "/")
        client.getresponse()

    _readers_behind(ask)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
