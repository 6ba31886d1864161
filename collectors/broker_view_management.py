"""RabbitMQ's view by its management API: GET /api/connections, channels, consumers and queues, nothing else.

Columns and filters keep the answers small. Lengths of queues are up to one interval of statistics old
(collect_statistics_interval, 5 s). Source: the API's reference that each broker serves at /api/.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from stucktrace.broker_urls import BrokerUrl
from stucktrace.collectors import broker_view
from stucktrace.collectors.broker_view import WHAT
from stucktrace.errors import CollectorError
from stucktrace.facts import ProcessFact
from stucktrace.facts.broker import BrokerChannel, BrokerConnection, BrokerConsumer, BrokerFact, BrokerQueue

SOURCE = "management API"
_CONNECT_S, _READ_S = 3.0, 10.0
_MOST_BYTES = 64 << 20
_CONNECTIONS = "name,peer_host,peer_port,vhost,user,state,client_properties"
_CHANNELS = (
    "number,connection_details,consumer_count,messages_unacknowledged,prefetch_count,global_prefetch_count,idle_since"
)
_QUEUES = "name,vhost,messages_ready,messages_unacknowledged,consumers,state"
_LONGEST_PID = 10
"""Digits."""
_RIGHTS = "the user needs the tag monitoring (or management, for its own connections) and access to the virtual host"


def read(url: BrokerUrl, process: ProcessFact, ends: tuple[str, ...], wanted: tuple[str, ...]) -> BrokerFact:
    """One reading. Raises CollectorError."""
    api = _Api(url)
    connections = [_connection(each) for each in api.get(f"connections?columns={_CONNECTIONS}")]
    mine, matched_by = broker_view.own(connections, ends, process.ns_pid)
    names = {each.name for each in mine}
    channels = api.get(f"channels?columns={_CHANNELS}") if mine else []
    consumers: list[BrokerConsumer] = []
    queues: list[BrokerQueue] = []
    complete = True
    for vhost in sorted({each.vhost for each in mine}):
        consumers += map(_consumer, api.get(f"consumers/{quote(vhost, safe='')}"))
        for each in api.get(f"queues/{quote(vhost, safe='')}?columns={_QUEUES}"):
            queue = _queue(each)
            complete &= queue.ready is not None or queue.name not in wanted
            if queue.ready or queue.unacked or queue.name in wanted:
                queues.append(queue)
    return BrokerFact(
        "rabbitmq",
        SOURCE,
        str(url),
        broker_view.now(),
        mine,
        matched_by,
        len(ends),
        len(connections),
        tuple(_channel(each) for each in channels if _name_of(each) in names),
        tuple(each for each in consumers if each.connection in names),
        tuple(queues),
        complete,
    )


class _Api:
    def __init__(self, url: BrokerUrl) -> None:
        import urllib3

        self._url = url
        self._base = f"{url.scheme}://{url.endpoint}/{url.path.strip('/') + '/' if url.path.strip('/') else ''}api/"
        self._headers = urllib3.util.make_headers(basic_auth=f"{url.user or 'guest'}:{url.password or 'guest'}")
        self._http = urllib3.PoolManager(
            num_pools=1, timeout=urllib3.Timeout(connect=_CONNECT_S, read=_READ_S), retries=False
        )

    def get(self, what: str) -> list[dict[str, Any]]:
        """The objects of one answer. Raises CollectorError."""
        import urllib3

        shown = f"{self._url} ({what.partition('?')[0]})"
        try:
            reply = self._http.request("GET", self._base + what, headers=self._headers, preload_content=False)
            status, body = reply.status, reply.read(_MOST_BYTES + 1)
            reply.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise CollectorError(
                WHAT,
                f"{shown} cannot be asked: {_why(error)}",
                "is it the management API's port (15672), as seen from the worker?",
            ) from None
        if status in (401, 403):
            raise CollectorError(WHAT, f"{shown} refuses user {self._url.user or 'guest'} (HTTP {status})", _RIGHTS)
        if status != 200 or len(body) > _MOST_BYTES:
            because = f"HTTP {status}" if status != 200 else "the answer is too long"
            raise CollectorError(WHAT, f"{shown} gives no list: {because}", "is this RabbitMQ's management API?")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, list) or not all(isinstance(each, dict) for each in answer):
            raise CollectorError(WHAT, f"{shown} gives no list", "is this RabbitMQ's management API?")
        return answer


def _why(error: Exception) -> str:
    """Without the connection object that urllib3 names first."""
    return re.sub(r"^(<.*?>|\w*Connection\(.*?\)): ", "", str(getattr(error, "reason", None) or error))


def endpoint(host: object, port: object) -> str:
    """As the sockets' collector writes it. Brokers give an IPv4 peer of a dual-stack socket in either form."""
    text = str(host or "").removeprefix("::ffff:")
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _connection(each: dict[str, Any]) -> BrokerConnection:
    properties = each.get("client_properties")
    known = properties if isinstance(properties, dict) else {}
    return BrokerConnection(
        str(each.get("name", "")),
        endpoint(each.get("peer_host"), each.get("peer_port")),
        str(each.get("vhost", "")),
        str(each.get("user", "")),
        str(each.get("state", "")),
        str(known.get("product", "")),
        pid_in(known),
    )


def pid_in(properties: dict[str, Any]) -> int | None:
    """The process id that a client gave itself."""
    given = next((properties[key] for key in ("pid", "process_id", "process.pid") if key in properties), None)
    text = str(given) if isinstance(given, int | str) else ""
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_PID else None


def _name_of(channel: dict[str, Any]) -> str:
    details = channel.get("connection_details")
    return str(details.get("name", "")) if isinstance(details, dict) else ""


def _channel(each: dict[str, Any]) -> BrokerChannel:
    limits = [limit for name in ("prefetch_count", "global_prefetch_count") if (limit := number(each.get(name)))]
    return BrokerChannel(
        _name_of(each),
        number(each.get("number")) or 0,
        number(each.get("messages_unacknowledged")),
        min(limits) if limits else number(each.get("prefetch_count")),
        number(each.get("consumer_count")),
        _age(each.get("idle_since")),
    )


def _consumer(each: dict[str, Any]) -> BrokerConsumer:
    channel, queue = each.get("channel_details"), each.get("queue")
    channel, queue = channel if isinstance(channel, dict) else {}, queue if isinstance(queue, dict) else {}
    return BrokerConsumer(
        str(queue.get("name", "")),
        str(queue.get("vhost", "")),
        str(channel.get("connection_name", "")),
        number(channel.get("number")),
        str(each.get("consumer_tag", "")),
        number(each.get("prefetch_count")),
        each.get("ack_required") if isinstance(each.get("ack_required"), bool) else None,
    )


def _queue(each: dict[str, Any]) -> BrokerQueue:
    return BrokerQueue(
        str(each.get("name", "")),
        str(each.get("vhost", "")),
        number(each.get("messages_ready")),
        number(each.get("messages_unacknowledged")),
        number(each.get("consumers")),
        str(each.get("state", "")),
    )


def number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _age(since: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(since))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, broker_view.now() - moment.timestamp())
