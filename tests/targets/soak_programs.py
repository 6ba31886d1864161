"""Programs that hang when they are told to and recover, and one that forks all the time. The first argument names one."""

import asyncio
import http.client
import os
import random
import signal
import socket
import sys
import threading
import time

from ready import say_ready


def serves():
    """Answers every GET; after a SIGUSR1 it takes them and answers none, until the next one."""
    answers = threading.Event()
    answers.set()

    def toggle():
        while True:
            signal.sigwait([signal.SIGUSR1])
            if answers.is_set():
                answers.clear()
            else:
                answers.set()

    def handle(connection):
        with connection, connection.makefile("rwb") as file:
            while file.readline():
                while file.readline().strip():
                    pass
                answers.wait()
                file.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                file.flush()

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    threading.Thread(target=toggle, daemon=True).start()
    with socket.create_server(("0.0.0.0", 0)) as listener:
        say_ready(str(listener.getsockname()[1]))
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()


def _get(connection):
    connection.request("GET", "/")
    connection.getresponse().read()


def asks(address, port):
    """One request after the other, over one connection and without a timeout."""
    connection = http.client.HTTPConnection(address, int(port))
    say_ready()
    while True:
        _get(connection)
        time.sleep(0.5)


def asks_under_a_lock(address, port):
    """The same, while two more threads want the lock now and then that the request is made under."""
    lock, connection = threading.Lock(), http.client.HTTPConnection(address, int(port))

    def read():
        while True:
            with lock:
                pass
            time.sleep(0.7)

    for _ in range(2):
        threading.Thread(target=read, daemon=True).start()
    say_ready()
    while True:
        with lock:
            _get(connection)
        time.sleep(0.5)


def blocks_its_loop(seconds):
    """A callback of the loop sleeps so long after each SIGUSR1."""

    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: time.sleep(float(seconds)))
        say_ready()
        while True:
            await asyncio.sleep(0.2)

    asyncio.run(main())


def forks():
    """Children that compute a little, sleep or are killed, some of them with children of their own."""
    say_ready()
    chance, children = random.Random(os.getpid()), []
    while True:
        pid = os.fork()
        if pid == 0:
            if chance.random() < 0.2 and os.fork():
                os.wait()
            sum(range(chance.randrange(200_000)))
            time.sleep(chance.uniform(0, 4))
            os._exit(0)
        children.append(pid)
        chance.random()
        time.sleep(chance.uniform(0.2, 1.5))
        if chance.random() < 0.3:
            os.kill(chance.choice(children), signal.SIGKILL)
        while children and (done := os.waitpid(-1, os.WNOHANG)[0]):
            children.remove(done)


def browses(address, port):
    """A client that asks a web server again and again."""
    say_ready()
    while True:
        with socket.create_connection((address, int(port))) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while connection.recv(4096):
                pass
        time.sleep(random.uniform(0.02, 0.4))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
