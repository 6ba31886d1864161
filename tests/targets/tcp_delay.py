"""A proxy on a loopback port that holds back what the server answers: most of it for 250 ms, some for longer.

tcp_delay.py HOST PORT: says its own port.
"""

import socket
import sys
import threading
import time
from queue import SimpleQueue

from ready import say_ready

HELD_S, HELD_LONGER_S, EVERY = 0.25, 0.6, 40


def to_server(client, server):
    while data := client.recv(1 << 16):
        server.sendall(data)
    server.shutdown(socket.SHUT_WR)


def from_server(server, held):
    number = 0
    while data := server.recv(1 << 16):
        number += 1
        held.put((time.monotonic() + (HELD_LONGER_S if number % EVERY == 0 else HELD_S), data))
    held.put(None)


def to_client(held, client):
    while (one := held.get()) is not None:
        time.sleep(max(0.0, one[0] - time.monotonic()))
        client.sendall(one[1])
    client.shutdown(socket.SHUT_WR)


listener = socket.create_server(("127.0.0.1", 0))
say_ready(str(listener.getsockname()[1]))
while True:
    client, _ = listener.accept()
    server = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held = SimpleQueue()
    for work in ((to_server, client, server), (from_server, server, held), (to_client, held, client)):
        threading.Thread(target=work[0], args=work[1:], daemon=True).start()
