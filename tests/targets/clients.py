"""Clients of real brokers, one per word of the command line: each says "ready" and then does what its name says, for ever.

clients.py NAME URL
"""

from __future__ import annotations

import select
import sys
import time
from typing import Any

from ready import say_ready


def kombu_consumer(url: str) -> None:
    from kombu import Connection, Queue

    with (
        Connection(url) as connection,
        connection.Consumer(Queue("kombu-idle"), callbacks=[lambda body, message: message.ack()]),
    ):
        say_ready()
        while True:
            connection.drain_events()


def pika_consumer(url: str) -> None:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url.removesuffix("//") + "/%2F"))
    channel = connection.channel()
    channel.queue_declare("pika-idle")
    channel.basic_consume("pika-idle", lambda *args: None)
    say_ready()
    channel.start_consuming()


def redis_blpop(url: str) -> None:
    import redis

    client = redis.Redis.from_url(url, socket_timeout=None)
    client.ping()
    say_ready()
    client.blpop(["nothing-comes-here"], timeout=0)


def redis_pubsub(url: str) -> None:
    import redis

    channel = redis.Redis.from_url(url, socket_timeout=None).pubsub()
    channel.subscribe("nothing-comes-here")
    channel.get_message(timeout=5)
    say_ready()
    for _ in channel.listen():
        pass


def redis_xread(url: str) -> None:
    import redis

    client = redis.Redis.from_url(url, socket_timeout=None)
    client.ping()
    say_ready()
    client.xread({"nothing-comes-here": "$"}, block=0)


def redis_counter(url: str) -> None:
    """Asks all the time, and would wait for ever."""
    import redis

    client = redis.Redis.from_url(url, socket_timeout=None)
    client.ping()
    say_ready()
    while True:
        client.incr("visits")
        time.sleep(0.2)


def psycopg2_listen(url: str) -> None:
    import psycopg2

    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute("LISTEN nothing")
    say_ready()
    while True:
        select.select([connection], [], [])
        connection.poll()


def psycopg3_listen(url: str) -> None:
    import psycopg

    connection = psycopg.connect(url, autocommit=True)
    connection.execute("LISTEN nothing")
    say_ready()
    for _ in connection.notifies():
        pass


def psycopg2_slow(url: str) -> None:
    import psycopg2

    cursor = psycopg2.connect(url).cursor()
    say_ready()
    cursor.execute("SELECT pg_sleep(600)")


def psycopg3_slow(url: str) -> None:
    import psycopg

    connection = psycopg.connect(url)
    say_ready()
    connection.execute("SELECT pg_sleep(600)")


def psycopg2_loop(url: str) -> None:
    import psycopg2

    cursor = psycopg2.connect(url).cursor()
    cursor.execute("SELECT 1")
    say_ready()
    while True:
        cursor.execute("SELECT 1")
        time.sleep(0.2)


def psycopg3_loop(url: str) -> None:
    import psycopg

    connection = psycopg.connect(url)
    connection.execute("SELECT 1")
    say_ready()
    while True:
        connection.execute("SELECT 1")
        time.sleep(0.2)


def psycopg2_row_lock(url: str) -> None:
    """Waits for a row that another connection of this same process has locked."""
    import psycopg2

    row_lock(psycopg2, url, "accounts2")


def psycopg3_row_lock(url: str) -> None:
    import psycopg

    row_lock(psycopg, url, "accounts3")


def row_lock(driver: Any, url: str, table: str) -> None:
    first = driver.connect(url)
    with first.cursor() as cursor:
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {table} (id int PRIMARY KEY, money int)")
        cursor.execute(f"INSERT INTO {table} VALUES (1, 1) ON CONFLICT DO NOTHING")
    first.commit()
    with first.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET money = 2 WHERE id = 1")
    cursor = driver.connect(url).cursor()
    say_ready()
    cursor.execute(f"UPDATE {table} SET money = 3 WHERE id = 1")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
