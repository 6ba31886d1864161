"""Which sinks the settings ask for. A sink's library is imported only when it is used."""

from __future__ import annotations

import os
from collections.abc import Callable

from stucktrace.settings import Settings
from stucktrace.sinks.delivery import Delivery, Sink
from stucktrace.sinks.stream import Stdout


def deliver_to(settings: Settings, complain: Callable[[str, str], None]) -> Delivery:
    """The way to all of them. CannotInspect when the spool is another agent's."""
    sinks: list[Sink] = []
    if settings.stdout:
        sinks.append(Stdout(as_json=settings.json or not os.isatty(1)))
    if settings.sentry_dsn:
        from stucktrace.sinks.sentry import Sentry

        environment, node = settings.sentry_environment or "", settings.node or ""
        sinks.append(Sentry(settings.sentry_dsn, environment=environment, server_name=node))
    if settings.otlp_endpoint:
        from stucktrace.sinks.otlp import Logs

        sinks.append(Logs(settings))
    return Delivery(sinks, settings.spool, settings.spool_bytes, complain)
