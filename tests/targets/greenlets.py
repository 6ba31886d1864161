"""Greenlets that wait, and hubs that stand still in a native lock. Says "PID TID" of the hub's thread.

The first argument is a case, the second "gevent" or "eventlet".
"""

from __future__ import annotations

import _thread
import os
import sys
import threading

from ready import say_ready

LIBRARY = sys.argv[2] if len(sys.argv) > 2 else "gevent"

# What a library keeps that was imported before the patching, or that a C extension has.
native_lock, native_start, native_read = _thread.allocate_lock, _thread.start_new_thread, os.read

if LIBRARY == "eventlet":
    import eventlet as green

    green.monkey_patch()
else:
    import gevent as green
    from gevent import monkey

    monkey.patch_all()

import socket  # noqa: E402

spawn = green.spawn


def say():
    say_ready(f"{os.getpid()} {os.getpid()}")


def silent_server():
    return socket.create_server(("127.0.0.1", 0), backlog=100)


def fetch(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(100)


def parked():
    green.sleep(600)  # parked


def twenty_wait():
    server = silent_server()
    for _ in range(20):
        spawn(fetch, server.getsockname()[1])
    for _ in range(3):
        spawn(parked)
    green.sleep(0.3)
    say()
    green.sleep(600)


def held_by_a_native_thread():
    lock, taken, (silence, _) = native_lock(), os.pipe(), os.pipe()

    def hold():
        with lock:
            os.write(taken[1], b"x")
            native_read(silence, 1)

    for _ in range(7):
        spawn(parked)
    native_start(hold, ())
    native_read(taken[0], 1)
    spawn(enter, lock)
    green.sleep(600)


def enter(lock):
    green.sleep(0.2)
    say()
    with lock:
        pass


def held_by_a_greenlet():
    lock = native_lock()

    def hold():
        with lock:
            green.sleep(0.1)
            green.sleep(600)  # holds

    for _ in range(7):
        spawn(parked)
    spawn(hold)
    spawn(enter, lock)
    green.sleep(600)


def given_back_by_a_greenlet():
    """The with block is open, and a native thread has the lock: it may release it at any time."""
    lock, (silence, _) = native_lock(), os.pipe()

    def gave_back():
        with lock:
            lock.release()
            native_start(lock.acquire, ())
            native_start(lambda: native_read(silence, 1) and lock.release(), ())
            while not lock.locked():
                green.sleep(0.01)
            spawn(enter, lock)
            green.sleep(600)

    spawn(gave_back)
    green.sleep(600)


def green_lock():
    """Healthy: a patched lock lets the hub go on."""
    lock = threading.Lock()

    def hold():
        with lock:
            green.sleep(600)

    def take():
        with lock:
            pass

    spawn(hold)
    green.sleep(0.1)
    spawn(take)
    green.sleep(0.1)
    say()
    green.sleep(600)


def busy():
    """Healthy: greenlets come and go all the time."""

    def beat():
        while True:
            green.sleep(0.001)  # beat

    def brief():
        green.sleep(0.002)

    for _ in range(10):
        spawn(beat)
    green.sleep(0.1)
    say()
    while True:
        spawn(brief)
        green.sleep(0.001)  # busy


if __name__ == "__main__":
    globals()[sys.argv[1]]()
