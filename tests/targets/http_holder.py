"""A server in one thread that holds its first request: "reads" it and works on it; is "deaf" and never reads it; is "mute": reads
for ever and says nothing; or is "full" and never even accepts, so that the connection stays in its queue.

Says its port; its address can be given, or the path of a UNIX socket.
"""

import socket
import sys
import time

from ready import say_ready

kind, address = (sys.argv[1:] + ["127.0.0.1"])[:2]
if "/" in address:
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    say_ready(address)
else:
    server = socket.create_server((address, 0))
    say_ready(str(server.getsockname()[1]))
if kind != "full":
    connection, _ = server.accept()
    if kind == "reads":
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
    while kind == "mute" and connection.recv(65536):
        pass
time.sleep(3600)
