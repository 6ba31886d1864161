"""A web application whose requests do what their path says."""

import socket
import threading
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


def publish(url):
    """A Celery task, with publisher confirms, on a socket that waits for them as long as the kernel does."""
    from celery import Celery

    app = CLIENTS.get(url)
    if app is None:
        app = CLIENTS[url] = Celery(broker=url, set_as_current=False)
        settings = {socket.TCP_USER_TIMEOUT: 0}
        app.conf.broker_transport_options = {"confirm_publish": True, "socket_settings": settings}
    with app.producer_pool.acquire(block=True) as producer:
        app.send_task("reports.build", retry=False, producer=producer)
    return b"published\n"


def amqp_connection(url, heartbeat):
    import amqp

    parts = urllib.parse.urlsplit(url)
    client = amqp.Connection(f"{parts.hostname}:{parts.port}", parts.username, parts.password, heartbeat=heartbeat)
    client.connect()
    return client


def beat_no_more(url):
    """An AMQP connection that has promised heartbeats, and a request that lets it send none."""
    kept = amqp_connection(url, 2)
    threading.Event().wait()
    return kept


def call_over_amqp(url):
    """A request over AMQP to a service that does not answer."""
    import amqp

    client = amqp_connection(url, 0)
    channel = client.channel()
    replies = channel.queue_declare(exclusive=True).queue
    channel.basic_consume(replies, callback=print, no_ack=True)
    channel.basic_publish(amqp.Message("?", reply_to=replies), routing_key="nobody")
    client.drain_events()


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
    if path == "/beats":
        return [beat_no_more(query["url"][0])]
    if path == "/call":
        return [call_over_amqp(query["url"][0])]
    if path == "/publish":
        return [publish(query["url"][0])]
    if path.startswith("/self"):
        return [fetch(f"http://{environ['HTTP_HOST']}/{path.removeprefix('/self').lstrip('/')}")]
    return [GREETING]
