"""One HTTP request without a timeout: with the standard library or with requests, over a UNIX socket when the URL is a path;
or one "later", on a connection that was made before.
"""

import http.client
import sys
import urllib.parse

from ready import say_ready, wait_for_go

library, url, *later = sys.argv[1:]
if later:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
    connection.connect()
    wait_for_go()
    connection.request("GET", "/")
    connection.getresponse().read()
elif url.startswith("/"):
    import socket

    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(url)
    say_ready()
    connection.request("GET", "/")
    connection.getresponse().read()
elif library == "urllib":
    import urllib.request

    say_ready()
    urllib.request.urlopen(url).read()
else:
    import requests

    say_ready()
    requests.get(url, timeout=None)
