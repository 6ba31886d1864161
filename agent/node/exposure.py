"""The agent's figures on their way out: /metrics and /healthz, and metrics to an OpenTelemetry collector."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stucktrace.node.figures import Figures
from stucktrace.settings import Settings

if TYPE_CHECKING:
    from stucktrace.sinks.otlp import Metrics
    from stucktrace.sinks.prometheus import Server


class Exposure:
    def __init__(self, settings: Settings, complain: Callable[[str, str], None]) -> None:
        """StucktraceError when the address asked for cannot be had."""
        self.figures: Figures | None = None
        """The latest."""
        self._server: Server | None = None
        self._metrics: Metrics | None = None
        if settings.metrics:
            from stucktrace.sinks.prometheus import serve

            self._server = serve(settings.metrics, self.read)
            if settings.metrics.endswith(":0"):
                complain(f"metrics on http://{self._server.address}/metrics", "")
        if settings.otlp_endpoint:
            from stucktrace.sinks.otlp import Metrics

            self._metrics = Metrics(settings, self.read, complain)

    @property
    def wanted(self) -> bool:
        """Somebody reads the figures."""
        return self._server is not None or self._metrics is not None

    def read(self) -> Figures | None:
        return self.figures

    def close(self, deadline_s: float) -> None:
        """Sends the last figures, as far as there is time."""
        if self._server is not None:
            self._server.close()
        if self._metrics is not None:
            self._metrics.close(deadline_s)
