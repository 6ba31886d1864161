"""Connects to HOST PORT: "once", or "forever" with a pause after each failure."""

import socket
import sys
import time

from ready import say_ready

host, port, how = sys.argv[1:]


def connect_with_retries():
    while True:
        try:
            return socket.create_connection((host, int(port)))
        except OSError:
            time.sleep(0.1)


say_ready()
if how == "once":
    socket.create_connection((host, int(port)))
else:
    connect_with_retries()
