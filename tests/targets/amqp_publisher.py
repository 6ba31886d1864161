"""A Celery producer with publisher confirms: publishes once, then again when it is let go. Its TCP_USER_TIMEOUT is given
in milliseconds, or "default". When a publish ends, with or without an error, it says so and waits for nothing in particular.
"""

import socket
import sys
import threading

from celery import Celery
from ready import wait_for_go

url, user_timeout = sys.argv[1:3]
options = {"confirm_publish": True}
if user_timeout != "default":
    options["socket_settings"] = {socket.TCP_USER_TIMEOUT: int(user_timeout)}
app = Celery(broker=url, set_as_current=False)
app.conf.broker_transport_options = options


def publish(producer):
    app.send_task("reports.build", args=("x" * 200,), retry=False, producer=producer)


with app.producer_pool.acquire(block=True) as producer:
    publish(producer)
    wait_for_go()
    try:
        publish(producer)
        print("published", flush=True)
    except Exception as error:
        print("failed:", error, flush=True)
    threading.Event().wait()
