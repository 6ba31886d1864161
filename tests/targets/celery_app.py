"""A Celery application: the broker from BROKER_URL, sockets without timeouts, tasks that do what their name says."""

import os
import threading
import time
import urllib.request

from celery import Celery

app = Celery("celery_app", broker=os.environ["BROKER_URL"])
app.conf.broker_transport_options = {"socket_timeout": None, "socket_keepalive": False}
app.conf.worker_hijack_root_logger = False


@app.task
def sleep(seconds):
    time.sleep(seconds)


@app.task
def compute():
    number = 0
    while True:
        number += 1


@app.task
def fetch(url):
    return len(urllib.request.urlopen(url).read())


@app.task
def self_deadlock():
    lock = threading.Lock()
    with lock, lock:
        pass
