"""A thread that holds an RLock over a question to a server, which is sent when the test says go; the main thread wants the lock.

Arguments: the server's address and port. Says "ready" when connected.
"""

import socket
import sys
import threading

from ready import say_ready, wait_for_go

lock = threading.RLock()
holds = threading.Event()
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))


def ask():
    with lock:
        holds.set()
        connection.sendall(b"?")
        connection.recv(1)


say_ready()
wait_for_go()
threading.Thread(target=ask, name="asks").start()
holds.wait()
with lock:
    pass
