"""A web application that opens connections when it is imported: CONNECTIONS is a JSON list of them, each a dict of "to" (host:port),
the socket's "timeout" and the options "keepalive" ([idle, interval, count]) and "user_timeout_ms"; with "green" it is made by
psycopg2, in C and not waited for, with a wait callback or without.
"""

import json
import os
import socket

HELD = []


def connect(plan):
    host, _, port = plan["to"].rpartition(":")
    made = socket.create_connection((host, int(port)))
    made.settimeout(plan.get("timeout"))
    if plan.get("keepalive"):
        idle, interval, count = plan["keepalive"]
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, plan.get("user_timeout_ms", 0))
    return made


def connect_in_c(plan):
    import psycopg2
    import psycopg2.extensions
    import psycopg2.extras

    if plan.get("green"):
        psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    host, _, port = plan["to"].rpartition(":")
    guarded = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 15000}
    return psycopg2.connect(host=host, port=port, async_=True, **guarded)


for each in json.loads(os.environ["CONNECTIONS"]):
    HELD.append(connect_in_c(each) if "green" in each else connect(each))
print("connections are open", flush=True)


def application(environ, start_response):
    start_response("200 OK", [])
    return [b""]
