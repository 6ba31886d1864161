"""Publishers to a broker, one per word of the command line: each says "ready", and publishes when it is let go.

amqp_publishers.py NAME URL
"""

from __future__ import annotations

import sys
import threading
from urllib.parse import urlparse

from ready import say_ready, wait_for_go


def _connected(url: str, heartbeat: int = 0, kind: type | None = None):
    import amqp

    at = urlparse(url)
    connection = (kind or amqp.Connection)(
        f"{at.hostname}:{at.port}", at.username, at.password, heartbeat=heartbeat, confirm_publish=True
    )
    connection.connect()
    return connection


def _message():
    import amqp

    return amqp.Message("x" * 10)


def py_amqp(url: str) -> None:
    """Confirms, no heartbeat: what Celery's producers are by default."""
    channel = _connected(url).channel()
    channel.basic_publish(_message(), routing_key="nowhere")
    wait_for_go()
    channel.basic_publish(_message(), routing_key="nowhere")
    threading.Event().wait()


def own_confirms(url: str) -> None:
    """It asks for confirms and waits for them by itself, on one channel."""
    from amqp import spec

    channel = _connected(url).channel()
    channel.confirm_select()
    wait_for_go()
    channel._basic_publish(_message(), routing_key="nowhere")
    channel.wait([spec.Basic.Ack, spec.Basic.Nack])


def py_amqp_gave_up(url: str) -> None:
    """Its first publish gives up while the broker holds it back; that is over when it publishes again."""
    connection = _connected(url)
    channel = connection.channel()
    wait_for_go("ready")
    try:
        channel.basic_publish(_message(), routing_key="nowhere", confirm_timeout=1)
    except TimeoutError:
        print("gave up", flush=True)
    over = threading.Event()
    connection.on_unblocked = over.set
    while not over.is_set():
        connection.drain_events()
    print("unblocked", flush=True)
    wait_for_go()
    channel.basic_publish(_message(), routing_key="nowhere")


def _pika(url: str, options: str) -> None:
    import pika

    # Its next heartbeat would overwrite what is left of the last method.
    parameters = pika.URLParameters(url.removesuffix("//") + "/%2F?heartbeat=600" + options)
    channel = pika.BlockingConnection(parameters).channel()
    channel.confirm_delivery()
    wait_for_go()
    channel.basic_publish("", "nowhere", b"x")
    threading.Event().wait()


def pika(url: str) -> None:
    _pika(url, "")


def pika_timed(url: str) -> None:
    """It notices that it is blocked, for it is to give up some time."""
    _pika(url, "&blocked_connection_timeout=3000")


def amqpstorm(url: str) -> None:
    import amqpstorm

    at = urlparse(url)
    connection = amqpstorm.Connection(at.hostname, at.username, at.password, port=at.port)
    channel = connection.channel(rpc_timeout=3000)
    channel.confirm_deliveries()
    wait_for_go()
    channel.basic.publish("x", "nowhere")


def aio_pika(url: str) -> None:
    import asyncio

    import aio_pika

    async def publish() -> None:
        connection = await aio_pika.connect(url.removesuffix("/") + "?heartbeat=600")
        channel = await connection.channel()
        wait_for_go()
        await channel.default_exchange.publish(aio_pika.Message(b"x"), routing_key="nowhere")
        await asyncio.Event().wait()

    asyncio.run(publish())


def consumer(url: str) -> None:
    """It publishes without asking for a confirm, so its connection is blocked, and consumes: it waits for nothing."""
    connection = _connected(url)
    channel = connection.channel()
    channel.queue_declare("publishers-idle", auto_delete=True)
    channel.basic_consume("publishers-idle", callback=print)
    connection.on_blocked = lambda reason: print("blocked", flush=True)
    wait_for_go()
    channel._basic_publish(_message(), routing_key="nowhere")
    while True:
        connection.drain_events()


def opened_again(url: str) -> None:
    """The broker closes its channel, which is opened anew and confirms as before; then it consumes."""
    import amqp

    connection = _connected(url)
    channel = connection.channel()
    try:
        channel.basic_publish(_message(), exchange="not-there", routing_key="x")
    except amqp.NotFound:
        print("closed", flush=True)
    channel.basic_publish(_message(), routing_key="nowhere")
    channel.queue_declare("publishers-again", auto_delete=True)
    channel.basic_consume("publishers-again", callback=print)
    say_ready()
    while True:
        connection.drain_events()


def closed(url: str) -> None:
    """Two threads, one connection: what the broker says of the publisher's channel reaches the other thread."""
    import amqp

    reads = threading.RLock()

    class Shared(amqp.Connection):
        def drain_events(self, timeout=None):
            if not reads.acquire(blocking=timeout is None):
                raise TimeoutError
            try:
                super().drain_events(timeout)
            finally:
                reads.release()

    connection = _connected(url, kind=Shared)
    channel = connection.channel()
    channel.basic_publish(_message(), routing_key="nowhere")
    listens = threading.Event()

    def listen() -> None:
        with reads:
            listens.set()
            try:
                connection.drain_events()
            except amqp.NotFound as error:
                print(error, flush=True)

    threading.Thread(target=listen).start()
    listens.wait()
    say_ready()
    channel.basic_publish(_message(), exchange="not-there", routing_key="x")


globals()[sys.argv[1]](sys.argv[2])
