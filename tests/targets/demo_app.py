"""A web application like many: each request counts itself in Redis. Served by gunicorn in the demonstration."""

import os

import redis

store = redis.Redis(host=os.environ["REDIS_HOST"], port=6379, socket_timeout=None, retry=None)


def count_visit() -> int:
    return int(store.incr("visits"))


def application(environ, start_response):
    visits = count_visit()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"visit {visits}\n".encode()]
