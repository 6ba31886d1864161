"""Two children publish with confirms over the connection that they inherited: each eats confirms meant for the other.

The protocol usually breaks in a way that leaves both waiting. When a child gets an error instead, both are ended and it begins
anew with a fresh connection. Says the children's pids once neither has moved for a second.
"""

import os
import signal
import sys
import time

import kombu
from ready import say_ready

url = sys.argv[1]


def publish(channel):
    producer = kombu.Producer(channel)
    for number in range(400):
        producer.publish({"number": number}, routing_key="nowhere")
    os._exit(0)


def switches(pid):
    return [line for line in open(f"/proc/{pid}/status") if "ctxt_switches" in line]


def attempt():
    connection = kombu.Connection(url, transport_options={"confirm_publish": True})
    channel = connection.channel()
    kombu.Producer(channel).publish({}, routing_key="nowhere")
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                publish(channel)
            finally:
                os._exit(1)
        children.append(child)
    while all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children):
        before = [switches(child) for child in children]
        time.sleep(1)
        if [switches(child) for child in children] == before:
            return children
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    return None


while not (children := attempt()):
    pass
say_ready(" ".join(map(str, children)))
signal.pause()
