"""A server that accepts every connection and says nothing. Says its port; its address can be given."""

import socket
import sys

from ready import say_ready

server = socket.create_server((sys.argv[1], 0), backlog=64)
say_ready(str(server.getsockname()[1]))
held = []
while True:
    held.append(server.accept())
