"""The settings of Celery that are read, with the names they had before 4.0, and the broker's options among them.

Source: celery/app/defaults.py (5.2 to 5.7), kombu/transport/{pyamqp,redis}.py, amqp/connection.py. Only what stands
here is ever read: a password, a key or a header that stands beside it is not.
"""

from __future__ import annotations

SUBJECT = "celery"
TRANSPORT = "broker_transport_options"
SOCKET = "socket_settings"

OLD = {
    "broker_url": "BROKER_URL",
    "broker_read_url": "BROKER_READ_URL",
    "broker_write_url": "BROKER_WRITE_URL",
    "broker_host": "BROKER_HOST",
    "broker_transport": "BROKER_TRANSPORT",
    "broker_heartbeat": "BROKER_HEARTBEAT",
    "broker_heartbeat_checkrate": "BROKER_HEARTBEAT_CHECKRATE",
    "broker_pool_limit": "BROKER_POOL_LIMIT",
    TRANSPORT: "BROKER_TRANSPORT_OPTIONS",
    "broker_connection_timeout": "BROKER_CONNECTION_TIMEOUT",
    "broker_connection_retry": "BROKER_CONNECTION_RETRY",
    "broker_connection_retry_on_startup": "BROKER_CONNECTION_RETRY_ON_STARTUP",
    "broker_connection_max_retries": "BROKER_CONNECTION_MAX_RETRIES",
    "broker_login_method": "BROKER_LOGIN_METHOD",
    "result_backend": "CELERY_RESULT_BACKEND",
    "redis_socket_timeout": "CELERY_REDIS_SOCKET_TIMEOUT",
    "redis_socket_connect_timeout": "CELERY_REDIS_SOCKET_CONNECT_TIMEOUT",
    "redis_socket_keepalive": "CELERY_REDIS_SOCKET_KEEPALIVE",
    "redis_retry_on_timeout": "CELERY_REDIS_RETRY_ON_TIMEOUT",
    "task_acks_late": "CELERY_ACKS_LATE",
    "task_reject_on_worker_lost": "CELERY_REJECT_ON_WORKER_LOST",
    "task_time_limit": "CELERYD_TASK_TIME_LIMIT",
    "task_soft_time_limit": "CELERYD_TASK_SOFT_TIME_LIMIT",
    "task_publish_retry": "CELERY_TASK_PUBLISH_RETRY",
    "task_publish_retry_policy": "CELERY_TASK_PUBLISH_RETRY_POLICY",
    "task_always_eager": "CELERY_ALWAYS_EAGER",
    "worker_concurrency": "CELERYD_CONCURRENCY",
    "worker_pool": "CELERYD_POOL",
    "worker_prefetch_multiplier": "CELERYD_PREFETCH_MULTIPLIER",
    "worker_max_tasks_per_child": "CELERYD_MAX_TASKS_PER_CHILD",
    "worker_max_memory_per_child": "CELERYD_MAX_MEMORY_PER_CHILD",
    "worker_cancel_long_running_tasks_on_connection_loss": "CELERYD_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS",
}
"""Setting -> its old spelling."""
NEW = {old: name for name, old in OLD.items()}

URLS = ("broker_url", "broker_read_url", "broker_write_url")
RARE = ("broker_read_url", "broker_write_url", "broker_host", "broker_transport", "broker_login_method")
"""Told only where they are set."""
PRIVATE = (*URLS, "result_backend", "broker_host")
"""Told in part: they may hold a password."""
STRUCTURED = (TRANSPORT, "task_publish_retry_policy")
ENVIRONMENT = {
    "broker_url": "CELERY_BROKER_URL",
    "broker_read_url": "CELERY_BROKER_READ_URL",
    "broker_write_url": "CELERY_BROKER_WRITE_URL",
    "result_backend": "CELERY_RESULT_BACKEND",
}
"""Set in the environment, they win over everything (the properties of celery.app.utils.Settings)."""

TRANSPORT_OPTIONS = (
    "confirm_publish",
    "confirm_timeout",
    "heartbeat",
    "connect_timeout",
    "read_timeout",
    "write_timeout",
    SOCKET,
    "max_retries",
    "interval_start",
    "interval_step",
    "interval_max",
    "visibility_timeout",
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_keepalive_options",
    "health_check_interval",
    "retry_on_timeout",
    "max_connections",
    "polling_interval",
)
OPTION_TABLES = (SOCKET, "socket_keepalive_options")

WORKER = {
    "worker_concurrency": "concurrency",
    "worker_pool": "pool_cls",
    "worker_prefetch_multiplier": "prefetch_multiplier",
    "worker_max_tasks_per_child": "max_tasks_per_child",
    "worker_max_memory_per_child": "max_memory_per_child",
    "task_time_limit": "time_limit",
    "task_soft_time_limit": "soft_time_limit",
}
"""Setting -> the attribute of a worker's own object that has what it came to (celery/worker/worker.py)."""
