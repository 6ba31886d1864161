"""Event loops that stand still. Says "PID TID" of the loop's thread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import sys
import threading
import time

from ready import say_ready


def silent_peer() -> socket.socket:
    """A connection whose other end never says anything."""
    global peer
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    return connection


def say(tid: int | None = None) -> None:
    say_ready(f"{os.getpid()} {tid or threading.get_native_id()}")


def asyncio_sleeps():
    async def handler():
        say()
        time.sleep(600)

    asyncio.run(handler())


def asyncio_receives():
    connection = silent_peer()

    async def fetch():
        say()
        return connection.recv(1000)

    async def main():
        await asyncio.gather(fetch(), asyncio.sleep(600))

    asyncio.run(main())


def asyncio_in_a_thread():
    """The loop is not the main thread's, and what blocks it is a lock that a coroutine holds over an await."""
    lock = threading.Lock()

    async def holder():
        with lock:
            await asyncio.sleep(600)

    async def waiter():
        await asyncio.sleep(0.05)
        say()
        lock.acquire()

    async def main():
        await asyncio.gather(holder(), waiter())

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()


def gevent_hub():
    """A C library that gevent cannot patch waits for its socket."""
    from gevent import monkey

    monkey.patch_all()
    import gevent

    left, right = socket.socketpair()
    libc = ctypes.CDLL(None)

    def driver():
        say_ready(f"{os.getpid()} {os.getpid()}")
        libc.recv(left.fileno(), ctypes.create_string_buffer(100), 100, 0)

    left.setblocking(True)
    os.set_blocking(left.fileno(), True)
    gevent.joinall([gevent.spawn(gevent.sleep, 600), gevent.spawn(driver)])
    del right


def eventlet_hub():
    import eventlet

    eventlet.monkey_patch()
    libc = ctypes.CDLL(None)

    def driver():
        eventlet.sleep(0.05)
        say_ready(f"{os.getpid()} {os.getpid()}")
        libc.sleep(600)

    pool = eventlet.GreenPool()
    pool.spawn(eventlet.sleep, 600)
    pool.spawn(driver)
    pool.waitall()


def _close_what_a_child_keeps(reader: int, writer: int, send: bytes = b"x") -> None:
    """From here on epoll reports a file that this process does not have any more, as soon as something is sent."""
    if os.fork() == 0:
        os.environ.pop("READY_FD", None)
        os.close(writer)
        time.sleep(600)
        os._exit(0)
    os.write(writer, send)
    os.close(reader)
    say()


def stale_epoll_of_asyncio():
    async def main():
        reader, writer = os.pipe()
        asyncio.get_running_loop().add_reader(reader, lambda: None)
        _close_what_a_child_keeps(reader, writer)
        await asyncio.sleep(600)

    asyncio.run(main())


def stale_and_quiet():
    epoll = select.epoll()
    reader, writer = os.pipe()
    epoll.register(reader, select.EPOLLIN)
    _close_what_a_child_keeps(reader, writer, b"")
    epoll.poll()


def stale_epoll():
    epoll = select.epoll()
    reader, writer = os.pipe()
    epoll.register(reader, select.EPOLLIN)
    _close_what_a_child_keeps(reader, writer)
    while True:
        for fd, _ in epoll.poll(1.0):
            with contextlib.suppress(OSError):
                os.read(fd, 1)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
