"""Connects when it is let go, and publishes at a steady pace without waiting for the confirms, which it takes as they come.

amqp_paced.py HOST PORT PUBLISHES: prints p50, p95, p99 and the longest time of a confirm in seconds, by its own clock.
"""

import json
import math
import sys
import threading
import time

import amqp
from ready import wait_for_go

PACE_S = 0.005
host, port, publishes = sys.argv[1], sys.argv[2], int(sys.argv[3])
wait_for_go()
connection = amqp.Connection(f"{host}:{port}", "test", "test", heartbeat=4)
connection.connect()
channel = connection.channel()
channel.confirm_select()
sent, took = {}, []


def acked(tag, multiple):
    now = time.perf_counter()
    for each in [each for each in sent if each == tag or (multiple and each <= tag)]:
        took.append(now - sent.pop(each))


channel.events["basic_ack"].add(acked)
began = time.perf_counter()
for number in range(publishes):
    while (left := began + number * PACE_S - time.perf_counter()) > 0:
        try:
            connection.drain_events(timeout=left)
        except TimeoutError:
            break
    sent[number + 1] = time.perf_counter()
    channel.basic_publish(amqp.Message("x" * 100), routing_key="nowhere")
while len(took) < publishes:
    connection.drain_events()
took.sort()
ranks = {f"p{percent}_s": took[math.ceil(percent / 100 * len(took)) - 1] for percent in (50, 95, 99)}
print(json.dumps({**ranks, "max_s": took[-1]}), flush=True)
threading.Event().wait()
