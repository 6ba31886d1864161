"""A Celery application: the broker from BROKER_URL, sockets without timeouts, tasks that do what their name says."""

import ctypes
import os
import socket
import threading
import time
import urllib.request

from celery import Celery

app = Celery("celery_app", broker=os.environ["BROKER_URL"])
app.conf.broker_transport_options = {"socket_timeout": None, "socket_keepalive": False}
if "USER_TIMEOUT_MS" in os.environ:
    settings = {socket.TCP_USER_TIMEOUT: int(os.environ["USER_TIMEOUT_MS"])}
    app.conf.broker_transport_options = {"socket_settings": settings}
app.conf.worker_hijack_root_logger = False


@app.task
def sleep(seconds):
    time.sleep(seconds)


@app.task(acks_late=True)
def sleep_then_ack(seconds):
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


@app.task
def pthread_deadlock():
    """Two threads take two mutexes of the C library in opposite order."""
    libc = ctypes.CDLL(None)
    first, second = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    both = threading.Barrier(2)

    def take(mine, other):
        libc.pthread_mutex_lock(mine)
        both.wait()
        libc.pthread_mutex_lock(other)

    threads = [threading.Thread(target=take, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
