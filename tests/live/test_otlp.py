"""Alerts and figures to a stand-in for an OpenTelemetry collector: what arrives, and what each of its answers means."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsPartialSuccess, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from stucktrace.node.figures import BOUNDS_S, Durations, Figures
from stucktrace.settings import Settings
from stucktrace.sinks.otlp import Logs, Metrics
from stucktrace.sinks.sink import Item, SinkDown, SinkRefused

from tests.harness import kernel
from tests.harness.otlp_collector import Collector, collector, values


def item(**changes: Any) -> Item:
    event = {
        "schema": "stucktrace.alert/1",
        "type": "opened",
        "time": 1_700_000_000.5,
        "id": "a1",
        "fingerprint": "f1",
        "code": "half-open",
        "severity": "critical",
        "confidence": "proven",
        "summary": "the peer is gone\x1b[31m",
        "count": 2,
        "affected": [{"pid": 7, "pod": "shop/web-1", "since_s": 9.0}, {"pid": 8, "pod": None, "since_s": 8.0}],
        "duration_s": 9,
        "how": None,
        "node": "node-1",
        "report": {
            "process": {
                "pid": 7,
                "kind": "celery-child",
                "container": {
                    "id": "c0ffee",
                    "pod": "0c3f",
                    "pod_name": "web-1",
                    "namespace": "shop",
                    "name": "worker",
                },
            },
            "verdict": {"tid": 70, "fd": 5},
            "sockets": [{"fd": 5, "remote": "10.0.0.9:5672", "remote_name": "rabbitmq"}],
            "threads": [
                {
                    "tid": 70,
                    "name": "celery",
                    "python": [{"function": "publish", "file": "/app/tasks.py", "line": 12}],
                    "work": {"kind": "task", "name": "shop.charge", "id": "t-1", "age_s": 12.5},
                }
            ],
        },
    }
    return Item(event | changes)


def settings(to: Collector, **others: Any) -> Settings:
    return Settings(otlp_endpoint=to.url, **others)


def test_an_alert_arrives_as_a_log_record():
    with collector() as to:
        logs = Logs(settings(to, otlp_headers=(("authorization", "Bearer x"),)))
        sent = item()
        logs.deliver(sent)
        headers, message = to.received["/v1/logs"].get(timeout=60)
        assert headers["authorization"] == "Bearer x"
        (resource,) = message.resource_logs
        assert (
            values(resource.resource.attributes).items()
            >= {"service.name": "stucktrace", "host.name": "node-1"}.items()
        )
        (record,) = resource.scope_logs[0].log_records
        assert record.time_unix_nano == 1_700_000_000_500_000_000
        assert abs(record.observed_time_unix_nano / 1e9 - time.time()) < 600
        assert record.severity_number == SeverityNumber.SEVERITY_NUMBER_ERROR
        assert record.body.string_value == "the peer is gone\\x1b[31m"
        assert (
            values(record.attributes).items()
            >= {
                "log.record.uid": str(sent.id),
                "stucktrace.code": "half-open",
                "stucktrace.count": 2,
                "k8s.pod.name": "web-1",
                "k8s.pod.uid": "0c3f",
                "k8s.namespace.name": "shop",
                "stucktrace.peer": "rabbitmq",
                "stucktrace.work.name": "shop.charge",
                "code.stacktrace": "publish (/app/tasks.py:12)",
            }.items()
        )
        assert values(record.attributes)["stucktrace.pids"] == [7, 8]

        logs.deliver(item(type="resolved", how="recovered", report=None))
        (record,) = to.next("/v1/logs").resource_logs[0].scope_logs[0].log_records
        assert record.severity_number == SeverityNumber.SEVERITY_NUMBER_INFO
        assert values(record.attributes)["stucktrace.how"] == "recovered"
        logs.close()


@pytest.mark.parametrize("status", [429, 503])
def test_a_collector_that_is_busy_says_when_to_come_back(status: int):
    with collector() as to:
        logs = Logs(settings(to))
        to.status, to.headers = status, {"Retry-After": "7"}
        with pytest.raises(SinkDown) as down:
            logs.deliver(item())
        assert down.value.retry_after_s == 7 and str(status) in down.value.reason
        to.status = 200
        logs.deliver(item())
        assert to.next("/v1/logs")


def test_a_wrong_token_keeps_the_alert_and_a_bad_request_does_not():
    with collector() as to:
        logs = Logs(settings(to))
        to.status = 401
        with pytest.raises(SinkDown, match="401"):
            logs.deliver(item())
        to.status = 400
        with pytest.raises(SinkRefused, match="400"):
            logs.deliver(item())
        rejected = ExportLogsPartialSuccess(rejected_log_records=1, error_message="too old")
        to.status, to.body = 200, ExportLogsServiceResponse(partial_success=rejected).SerializeToString()
        with pytest.raises(SinkRefused, match="too old"):
            logs.deliver(item())


def test_no_collector_is_down_and_so_is_one_that_hangs_up():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        logs = Logs(Settings(otlp_endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}"))
        listener.close()
        with pytest.raises(SinkDown, match="refused") as down:
            logs.deliver(item())
        assert "0x" not in down.value.reason


def test_the_figures_arrive_and_what_fails_is_said_once():
    figures = Figures(
        time.monotonic(),
        started_s=1_700_000_000.0,
        node="node-1",
        opened={"half-open": 3},
        open={("half-open", "critical"): 1},
        glances=Durations().plus(0.002).plus(60),
    )
    said: list[str] = []
    with collector() as to:
        metrics = Metrics(settings(to), lambda: figures, lambda message, _: said.append(message))
        message = to.next("/v1/metrics")
        (resource,) = message.resource_metrics
        assert values(resource.resource.attributes)["host.name"] == "node-1"
        found = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
        (opened,) = found["stucktrace.alerts_opened"].sum.data_points
        assert found["stucktrace.alerts_opened"].sum.is_monotonic
        assert (opened.as_double, values(opened.attributes)) == (3.0, {"code": "half-open"})
        assert opened.start_time_unix_nano == 1_700_000_000_000_000_000
        (still,) = found["stucktrace.alerts_open"].gauge.data_points
        assert values(still.attributes) == {"code": "half-open", "severity": "critical"}
        (glances,) = found["stucktrace.glance_duration"].histogram.data_points
        assert list(glances.explicit_bounds) == list(BOUNDS_S) and glances.count == 2 == sum(glances.bucket_counts)
        assert found["stucktrace.glance_duration"].unit == "s"
        metrics.close(deadline_s=60)
        assert to.next("/v1/metrics")

        to.status = 503
        metrics = Metrics(settings(to), lambda: figures, lambda message, _: said.append(message))
        kernel.wait_until(lambda: said, "the complaint")
        metrics.close()
    assert said == [f"otlp metrics: {to.url}/v1/metrics answers 503"]
