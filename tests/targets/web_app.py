"""A web application whose requests do what their path says."""

import urllib.parse
import urllib.request

GREETING = b"hello\n"
CHUNK = b"x" * (1 << 16)
CLIENTS = {}


def fetch(url):
    return urllib.request.urlopen(url).read()


def run_sql(url):
    import psycopg2

    cursor = psycopg2.connect(url).cursor()
    cursor.execute("SELECT pg_sleep(3600)")
    return b"done\n"


def ask_redis(url):
    """Over one connection for all requests."""
    import redis

    client = CLIENTS.setdefault(url, redis.Redis.from_url(url, socket_timeout=None))
    return repr(client.ping()).encode()


def application(environ, start_response):
    path, query = environ["PATH_INFO"], urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/big":
        return (CHUNK for _ in range(1600))
    if path == "/fetch":
        return [fetch(query["url"][0])]
    if path == "/sql":
        return [run_sql(query["url"][0])]
    if path == "/redis":
        return [ask_redis(query["url"][0])]
    if path.startswith("/self"):
        return [fetch(f"http://{environ['HTTP_HOST']}/{path.removeprefix('/self').lstrip('/')}")]
    return [GREETING]
