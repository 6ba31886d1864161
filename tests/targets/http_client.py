"""One HTTP request without a timeout: with the standard library or with requests."""

import sys

from ready import say_ready

library, url = sys.argv[1:]
say_ready()
if library == "urllib":
    import urllib.request

    urllib.request.urlopen(url).read()
else:
    import requests

    requests.get(url, timeout=None)
