"""Publishes with confirms over py-amqp or pika and consumes it all again, and says what it did by its own clock.

amqp_load.py LIBRARY URL QUEUE PUBLISHES: each time that it is let go it publishes so many, one after the other, and
prints how many, and p50, p95, p99 and the longest time of a confirm in seconds: from the call that sends to the one that
received. The third time it consumes what is there, the fourth time it closes the connection.
"""

import json
import math
import signal
import sys
import time

from ready import say_ready

library, url, queue, publishes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
BODY = b"x" * 300


class Pyamqp:
    def __init__(self):
        from kombu import Connection

        self.connection = Connection(url, transport_options={"confirm_publish": True})
        self.channel = self.connection.default_channel
        self.channel.queue_declare(queue, auto_delete=False)
        self.publish()

    def publish(self):
        from amqp import Message

        self.channel.basic_publish(Message(BODY), exchange="", routing_key=queue)

    def consume(self, wanted):
        found = []

        def received(message):
            found.append(message)
            self.channel.basic_ack(message.delivery_tag)

        self.channel.basic_consume(queue, callback=received)
        while len(found) < wanted:
            self.connection.drain_events()

    def waiting(self):
        return self.channel.queue_declare(queue, passive=True).message_count

    def close(self):
        self.connection.release()


class Pika:
    def __init__(self):
        import pika

        self.connection = pika.BlockingConnection(pika.URLParameters(url.removesuffix("//") + "/%2F"))
        self.channel = self.connection.channel()
        self.channel.queue_declare(queue)
        self.channel.confirm_delivery()
        self.publish()

    def publish(self):
        self.channel.basic_publish("", queue, BODY)

    def consume(self, wanted):
        for method, _, _ in self.channel.consume(queue):
            self.channel.basic_ack(method.delivery_tag)
            wanted -= 1
            if not wanted:
                return

    def waiting(self):
        return self.channel.queue_declare(queue, passive=True).method.message_count

    def close(self):
        self.connection.close()


def publish_all(client):
    took = []
    for _ in range(publishes):
        began = time.perf_counter()
        client.publish()
        took.append(time.perf_counter() - began)
    took.sort()
    ranks = {f"p{percent}": took[math.ceil(percent / 100 * len(took)) - 1] for percent in (50, 95, 99)}
    print(json.dumps({"waiting": client.waiting(), **ranks, "max": took[-1]}), flush=True)


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
client = Pyamqp() if library == "py-amqp" else Pika()
say_ready()
for _ in range(2):
    signal.sigwait([signal.SIGUSR1])
    publish_all(client)
signal.sigwait([signal.SIGUSR1])
client.consume(client.waiting())
print("consumed", flush=True)
signal.sigwait([signal.SIGUSR1])
client.close()
print("closed", flush=True)
signal.sigwait([signal.SIGUSR1])
