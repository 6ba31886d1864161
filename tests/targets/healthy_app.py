"""A Celery application without a broker. With WARM set it sends itself a long task and is told to end in the midst of it."""

import os
import signal
import time

from celery import Celery, signals
from ready import say_ready

tasks = Celery("healthy_app", broker="memory://", backend="cache+memory://")
tasks.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, beat_schedule={})


@signals.worker_ready.connect
def _worker_ready(sender=None, **_):
    if "WARM" in os.environ:
        long_task.delay()
    else:
        say_ready()


@signals.worker_shutting_down.connect
def _shutting_down(**_):
    say_ready()


@signals.beat_init.connect
def _beat_ready(**_):
    say_ready()


@tasks.task
def long_task():
    if "WARM" in os.environ:
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(3600)
