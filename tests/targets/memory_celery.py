"""A Celery application whose broker is its own memory."""

from celery import Celery

app = Celery("memory_celery", broker="memory://")
