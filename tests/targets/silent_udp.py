"""Takes datagrams on ADDRESS PORT and answers none."""

import socket
import sys

from ready import say_ready

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
say_ready()
while True:
    server.recv(65536)
