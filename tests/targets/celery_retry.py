"""A Celery producer with publisher confirms, no TCP_USER_TIMEOUT, and Celery's own retry: publishes one task, then another
when it is let go, and says when that is done or how it failed. `python celery_retry.py URL QUEUE`.
"""

import socket
import sys
import threading

from celery import Celery
from ready import wait_for_go

url, queue = sys.argv[1:]
app = Celery(broker=url, set_as_current=False)
app.conf.broker_transport_options = {"confirm_publish": True, "socket_settings": {socket.TCP_USER_TIMEOUT: 0}}


def publish(number):
    app.send_task("reports.build", args=(number,), queue=queue, retry=True)


publish(1)
wait_for_go()
try:
    publish(2)
    print("published", flush=True)
except Exception as error:
    print("failed:", error, flush=True)
threading.Event().wait()
