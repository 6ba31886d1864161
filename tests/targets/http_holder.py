"""An HTTP server in one thread that holds its first request: "reads" it and works on it, or is "deaf" and never reads it.

Says its port; its address can be given. With "full" it never even accepts: the connection stays in its queue.
"""

import socket
import sys
import time

from ready import say_ready

kind = sys.argv[1]
server = socket.create_server((sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1", 0))
say_ready(str(server.getsockname()[1]))
if kind != "full":
    connection, _ = server.accept()
    if kind == "reads":
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
time.sleep(3600)
