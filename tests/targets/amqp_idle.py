"""Idle connections to a broker: kombu's with confirms and without a heartbeat, kombu's with one, pika's with another."""

import os
import time

import kombu
import pika
from ready import say_ready

url = os.environ["BROKER_URL"]
confirming = kombu.Connection(url, transport_options={"confirm_publish": True})
confirming.Producer().publish("", exchange="", routing_key="nowhere")
beating = kombu.Connection(url, heartbeat=20)
beating.connect()
blocking = pika.BlockingConnection(pika.URLParameters(url.rstrip("/") + "/%2F?heartbeat=33"))
blocking.channel()
say_ready()
time.sleep(3600)
