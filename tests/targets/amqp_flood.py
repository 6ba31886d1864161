"""Both ends of an AMQP connection at full speed, from bytes that are made beforehand, with no broker in between.

amqp_flood.py FRAMES_PER_SECOND SECONDS: let go, it publishes and is acked, each message a write of three frames and each
ack one, and prints how many messages there were and how many seconds they took. The client is this process.
"""

import os
import socket
import struct
import sys
import time

from pika import frame, spec
from ready import wait_for_go

rate, seconds = int(sys.argv[1]), float(sys.argv[2])
BODY = b"x" * 120
MESSAGE = (
    frame.Method(1, spec.Basic.Publish(exchange="", routing_key="celery")).marshal()
    + frame.Header(1, len(BODY), spec.BasicProperties(delivery_mode=2)).marshal()
    + frame.Body(1, BODY).marshal()
)
TICK_S = 0.01
PER_TICK = int(rate * TICK_S / 4)
ACK = struct.Struct(">BHIHHQBB")


def method(channel, what):
    return frame.Method(channel, what).marshal()


def serve(listener):
    """Acks each message by its own frame, as many in a write as came in one read."""
    connection, _ = listener.accept()
    connection.recv(8, socket.MSG_WAITALL)
    received = acked = 0
    while data := connection.recv(1 << 18):
        if data[:1] == b"\x01" and data[7:11] != MESSAGE[7:11]:
            connection.sendall(method(1, spec.Confirm.SelectOk()))
            continue
        received += len(data)
        messages = received // len(MESSAGE)
        connection.sendall(b"".join(ACK.pack(1, 1, 13, 60, 80, tag, 0, 0xCE) for tag in range(acked + 1, messages + 1)))
        acked = messages
    os._exit(0)


listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    serve(listener)
client = socket.create_connection(listener.getsockname())
listener.close()
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client.sendall(b"AMQP\x00\x00\x09\x01")
time.sleep(0.1)
client.sendall(
    method(0, spec.Connection.TuneOk(2047, 131072, 60))
    + method(1, spec.Channel.Open())
    + method(1, spec.Confirm.Select())
)
client.recv(12, socket.MSG_WAITALL)
wait_for_go()
wanted = int(seconds / TICK_S)
began = time.monotonic()
sent = unread = 0
for tick in range(wanted):
    for _ in range(PER_TICK):
        client.send(MESSAGE)
    sent += PER_TICK
    unread += PER_TICK * ACK.size
    try:
        while data := client.recv(1 << 18, socket.MSG_DONTWAIT):
            unread -= len(data)
    except BlockingIOError:
        pass
    time.sleep(max(0.0, began + (tick + 1) * TICK_S - time.monotonic()))
took_s = time.monotonic() - began
while unread > 0:
    unread -= len(client.recv(1 << 18))
print(f"sent {sent} {took_s}", flush=True)
time.sleep(3600)
