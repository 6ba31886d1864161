"""Connections that nobody gives back. The first argument names the case; each says "PID TID" of a thread that hangs."""

import contextlib
import os
import queue
import socket
import sys
import threading

from ready import say_ready


class Connection:
    def __init__(self):
        self.ours, self.theirs = socket.socketpair()


class QueuePool:
    """What many programs make for themselves."""

    def __init__(self, size):
        self.free = queue.Queue()
        for _ in range(size):
            self.free.put(Connection())

    def get(self):
        return self.free.get()

    def put(self, connection):
        self.free.put(connection)

    @contextlib.contextmanager
    def connection(self):
        connection = self.get()
        try:
            yield connection
        finally:
            self.put(connection)


class ConditionPool:
    """Keeps what is out in a set of its own."""

    def __init__(self, size):
        self.max_size, self.free, self.used = size, [Connection() for _ in range(size)], set()
        self.changed = threading.Condition()

    def checkout(self):
        with self.changed:
            while not self.free:
                self.changed.wait()
            connection = self.free.pop()
            self.used.add(connection)
            return connection

    def give_back(self, connection):
        with self.changed:
            self.used.remove(connection)
            self.free.append(connection)
            self.changed.notify()


class SemaphorePool:
    def __init__(self, size):
        self.slots = threading.BoundedSemaphore(size)

    @contextlib.contextmanager
    def session(self):
        with self.slots:
            yield Connection()


def park():
    say_ready(f"{os.getpid()} {threading.get_native_id()}")


def one_for_the_order_and_one_for_the_log():
    """One thread has the only connection and asks for another."""
    pool = QueuePool(1)
    order = pool.get()
    park()
    log = pool.get()
    order.ours.send(log)


def in_blocks():
    """The same in nested blocks, in functions of their own."""
    pool = QueuePool(2)

    def audit():
        with pool.connection() as connection:
            connection.ours.send(b"audit")

    def order():
        with pool.connection():
            with pool.connection():
                audit()

    park()
    order()


def each_of_two():
    """Each thread has one and asks for another."""
    pool, meeting = ConditionPool(2), threading.Barrier(2)

    def serve():
        first = pool.checkout()
        meeting.wait()
        second = pool.checkout()
        pool.give_back(second)
        pool.give_back(first)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    say_ready(f"{os.getpid()} {threads[0].native_id}")
    for thread in threads:
        thread.join()


def by_semaphore():
    pool = SemaphorePool(1)

    def inner():
        with pool.session():
            pass

    with pool.session():
        park()
        inner()


def held_by_a_silent_server():
    """One thread has the connection and waits for an answer that does not come; another one wants it."""
    pool = ConditionPool(1)

    def query():
        connection = pool.checkout()
        taken.set()
        connection.ours.recv(1)

    taken = threading.Event()
    threading.Thread(target=query).start()
    taken.wait()
    park()
    other = pool.checkout()
    pool.give_back(other)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
