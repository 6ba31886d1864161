"""Alerts as OTLP log records and figures as OTLP metrics: the protobuf messages of opentelemetry-proto. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from stucktrace import __version__, reported
from stucktrace.node.figures import BOUNDS_S, Figures
from stucktrace.sinks.measures import COUNTER, HISTOGRAM, MEASURES, Measure
from stucktrace.sinks.page import clean
from stucktrace.sinks.sink import Item, Json

SEVERITIES = {
    "critical": SeverityNumber.SEVERITY_NUMBER_ERROR,
    "warning": SeverityNumber.SEVERITY_NUMBER_WARN,
    "info": SeverityNumber.SEVERITY_NUMBER_INFO,
}
UNITS = {"seconds": "s", "bytes": "By", "": "1"}
LONGEST_TEXT = 4_000
FRAMES = 60
_SCOPE = InstrumentationScope(name="stucktrace", version=__version__)


def log_request(item: Item, observed_s: float) -> ExportLogsServiceRequest:
    """`observed_s`: CLOCK_REALTIME now."""
    event = item.event
    resolved = event["type"] == "resolved"
    record = LogRecord(
        time_unix_nano=_ns(event["time"]),
        observed_time_unix_nano=_ns(observed_s),
        severity_number=SEVERITIES["info" if resolved else event["severity"]],
        severity_text="info" if resolved else event["severity"],
        body=_any(clean(event["summary"], LONGEST_TEXT)),
        attributes=_attributes(log_attributes(item)),
        event_name=f"stucktrace.alert.{event['type']}",
    )
    logs = ResourceLogs(resource=_resource(event["node"]), scope_logs=[ScopeLogs(scope=_SCOPE, log_records=[record])])
    return ExportLogsServiceRequest(resource_logs=[logs])


def log_attributes(item: Item) -> dict[str, Any]:
    """OpenTelemetry's own names where it has one. What the report says is there on `opened` only; the id joins them."""
    event = item.event
    found = {
        "log.record.uid": str(item.id),
        "stucktrace.alert.type": event["type"],
        "stucktrace.alert.id": event["id"],
        "stucktrace.alert.fingerprint": event["fingerprint"],
        "stucktrace.code": event["code"],
        "stucktrace.confidence": event["confidence"],
        "stucktrace.count": event["count"],
        "stucktrace.duration_s": float(event["duration_s"]),
        "stucktrace.how": event["how"],
        "stucktrace.pids": [affected["pid"] for affected in event["affected"]],
        **_pod(event["affected"]),
    }
    if event["report"] is not None:
        found.update(_from_report(event["report"]))
    return {name: value for name, value in found.items() if value not in (None, "", [])}


def _pod(affected: Sequence[Json]) -> dict[str, str]:
    """The first one's: "NAMESPACE/NAME", or the uid."""
    namespace, separator, name = next((one["pod"] for one in affected if one["pod"]), "").partition("/")
    return {"k8s.namespace.name": namespace, "k8s.pod.name": name} if separator else {"k8s.pod.uid": namespace}


def _from_report(report: Json) -> Iterator[tuple[str, Any]]:
    process = report["process"]
    container = process["container"] or {}
    yield "process.pid", process["pid"]
    yield "stucktrace.worker.kind", process["kind"]
    yield "k8s.namespace.name", container.get("namespace")
    yield "k8s.container.name", container.get("name")
    yield "container.id", container.get("id")
    yield "k8s.pod.uid", container.get("pod")
    yield "k8s.pod.name", container.get("pod_name")
    yield "stucktrace.peer", reported.peer(report)
    thread = reported.thread(report)
    if thread is None:
        return
    yield "thread.id", thread["tid"]
    yield "thread.name", thread["name"]
    frames = [f"{frame['function']} ({frame['file']}:{frame['line']})" for frame in thread["python"][:FRAMES]]
    yield "code.stacktrace", "\n".join(frames)
    if thread["work"]:
        yield "stucktrace.work.kind", thread["work"]["kind"]
        yield "stucktrace.work.name", thread["work"]["name"]
        yield "stucktrace.work.id", thread["work"]["id"]
        yield "stucktrace.work.age_s", thread["work"]["age_s"]


def metric_request(figures: Figures, now_s: float) -> ExportMetricsServiceRequest:
    """`now_s`: CLOCK_REALTIME. All totals count since the agent's start."""
    metrics = [_metric(measure, figures, _ns(now_s)) for measure in MEASURES]
    scope = ScopeMetrics(scope=_SCOPE, metrics=[metric for metric in metrics if metric is not None])
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=_resource(figures.node), scope_metrics=[scope])]
    )


def _metric(measure: Measure, figures: Figures, now_ns: int) -> Metric | None:
    """None where there is no value."""
    since_ns = _ns(figures.started_s)
    metric = Metric(name=f"stucktrace.{measure.name}", description=measure.text, unit=UNITS[measure.unit])
    cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    if measure.kind == HISTOGRAM and measure.durations is not None:
        durations = measure.durations(figures)
        histogram = HistogramDataPoint(
            start_time_unix_nano=since_ns,
            time_unix_nano=now_ns,
            count=durations.count,
            sum=durations.total_s,
            bucket_counts=durations.counts,
            explicit_bounds=BOUNDS_S,
        )
        metric.histogram.CopyFrom(Histogram(data_points=[histogram], aggregation_temporality=cumulative))
        return metric
    points = [
        NumberDataPoint(
            start_time_unix_nano=since_ns if measure.kind == COUNTER else 0,
            time_unix_nano=now_ns,
            as_double=value,
            attributes=_attributes(dict(zip(measure.labels, labels, strict=True))),
        )
        for labels, value in (measure.values(figures).items() if measure.values else ())
    ]
    if not points:
        return None
    if measure.kind == COUNTER:
        metric.sum.CopyFrom(Sum(data_points=points, aggregation_temporality=cumulative, is_monotonic=True))
    else:
        metric.gauge.CopyFrom(Gauge(data_points=points))
    return metric


def _resource(node: str) -> Resource:
    names = {"service.name": "stucktrace", "service.version": __version__, "host.name": node}
    return Resource(attributes=_attributes(names))


def _attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=name, value=_any(value)) for name, value in values.items()]


def _any(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        found = AnyValue()
        found.array_value.values.extend(_any(part) for part in value)
        return found
    lines = str(value).split("\n")
    return AnyValue(string_value="\n".join(clean(line, LONGEST_TEXT) for line in lines))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
