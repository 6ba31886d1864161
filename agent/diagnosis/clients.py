"""Which client library a wait goes through, and its own names for the settings that bound a wait or notice a dead peer.

Source: the frames of the wait, then the packages of the target. Unknown libraries get the socket options themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from stucktrace.diagnosis.waits import Wait
from stucktrace.facts import Snapshot


@dataclass(frozen=True)
class Client:
    """One library's words for what every client needs."""

    name: str
    user_timeout: str
    """Sets TCP_USER_TIMEOUT: unacknowledged data ends the connection."""
    keepalive: str
    """Turns keepalive on: an idle wait notices a dead peer."""
    timeout: str
    """Bounds the wait itself: the only help against a peer that is alive and silent."""
    loses: str
    """What is lost, or done twice, when the connection is ended under it."""


_AMQP_LOSES = (
    "a message whose confirm is missing may be stored or not: publish it again; consumed messages without an ack "
    "are delivered again"
)
_SQL_LOSES = "the open transaction is rolled back by the server; a COMMIT under way may have happened or not"
_COMMAND_LOSES = "the command under way may have been done or not"

# py-amqp turns keepalive on itself; SO_KEEPALIVE among its socket_settings would be another option, of level SOL_TCP.
CLIENTS: dict[str, Client] = {
    "kombu": Client(
        "kombu",
        "broker_transport_options = {'socket_settings': {socket.TCP_USER_TIMEOUT: 30000}}",
        "broker_transport_options = {'socket_settings': {socket.TCP_KEEPIDLE: 30, "
        "socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}}",
        # confirm_timeout of a publish ends the wait for the confirm alone: the channel is closed then, and that waits
        # for the same broker (celery 5.2 to 5.7).
        "broker_transport_options = {'read_timeout': 10, 'write_timeout': 10}; and 'heartbeat': 30 for publishers "
        "(somebody has to send it: Celery's worker does, a bare publisher has to call heartbeat_check)",
        _AMQP_LOSES,
    ),
    "amqp": Client(
        "py-amqp",
        "amqp.Connection(..., socket_settings={socket.TCP_USER_TIMEOUT: 30000})",
        "amqp.Connection(..., socket_settings={socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 5, "
        "socket.TCP_KEEPCNT: 3})",
        "amqp.Connection(..., read_timeout=30, heartbeat=30) and basic_publish(..., confirm_timeout=10)",
        _AMQP_LOSES,
    ),
    "pika": Client(
        "pika",
        "pika.ConnectionParameters(..., tcp_options={'TCP_USER_TIMEOUT': 30000})",
        "pika.ConnectionParameters(..., tcp_options={'TCP_KEEPIDLE': 30, 'TCP_KEEPINTVL': 5, 'TCP_KEEPCNT': 3})",
        "pika.ConnectionParameters(..., heartbeat=30, blocked_connection_timeout=60)",
        _AMQP_LOSES,
    ),
    "redis": Client(
        "redis-py",
        "redis.Redis(..., socket_keepalive_options={socket.TCP_USER_TIMEOUT: 30000}, socket_keepalive=True)",
        "redis.Redis(..., socket_keepalive=True, socket_keepalive_options={socket.TCP_KEEPIDLE: 30, "
        "socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3})",
        "redis.Redis(..., socket_timeout=10, socket_connect_timeout=5, health_check_interval=30)",
        _COMMAND_LOSES,
    ),
    "kombu-redis": Client(
        "kombu over Redis",
        "broker_transport_options = {'socket_keepalive': True, "
        "'socket_keepalive_options': {socket.TCP_USER_TIMEOUT: 30000}}",
        "broker_transport_options = {'socket_keepalive': True, 'health_check_interval': 25}",
        "broker_transport_options = {'socket_timeout': 30, 'socket_connect_timeout': 5}",
        "messages that were taken and not acknowledged come back after the visibility timeout",
    ),
    "postgresql": Client(
        "libpq",
        "tcp_user_timeout=30000 in the connection string",
        "keepalives=1 keepalives_idle=30 keepalives_interval=5 keepalives_count=3 in the connection string",
        "options='-c statement_timeout=30000 -c lock_timeout=10000' in the connection string; connect_timeout=5",
        _SQL_LOSES,
    ),
    "mysql": Client(
        "the MySQL client",
        "TCP_USER_TIMEOUT (30000) on the connection's socket, or net.ipv4.tcp_retries2 = 8 in the network namespace",
        "SO_KEEPALIVE with TCP_KEEPIDLE 30 on the connection's socket",
        "connect_timeout=5, read_timeout=30, write_timeout=30",
        _SQL_LOSES,
    ),
    "http": Client(
        "the HTTP client",
        "HTTPAdapter with socket_options=[..., (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30000)]",
        "HTTPAdapter with socket_options=[..., (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), "
        "(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)]",
        "a timeout on every call: requests.get(..., timeout=(3.05, 27)), httpx.Client(timeout=30), "
        "urllib.request.urlopen(..., timeout=30)",
        "the request may have been carried out or not",
    ),
    "mongo": Client(
        "pymongo",
        "net.ipv4.tcp_retries2 = 8 in the network namespace (pymongo sets no TCP_USER_TIMEOUT)",
        "net.ipv4.tcp_keepalive_time = 120 in the network namespace (pymongo turns keepalive on)",
        "MongoClient(..., socketTimeoutMS=30000, timeoutMS=30000)",
        _COMMAND_LOSES,
    ),
    "grpc": Client(
        "grpc",
        "grpc.insecure_channel(..., options=[('grpc.keepalive_time_ms', 20000), ('grpc.keepalive_timeout_ms', 10000)])",
        "grpc.insecure_channel(..., options=[('grpc.keepalive_time_ms', 20000), ('grpc.keepalive_timeout_ms', 10000)])",
        "a deadline on every call: stub.Method(request, timeout=30)",
        "the call may have been carried out or not",
    ),
}

OTHER = Client(
    "the client",
    "sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30000) on the connection's socket",
    "SO_KEEPALIVE 1, TCP_KEEPIDLE 30, TCP_KEEPINTVL 5, TCP_KEEPCNT 3 on the connection's socket",
    "a timeout on the socket (sock.settimeout(30)), or the library's own timeout option",
    "the request may have been carried out or not",
)

_BY_FILE = (
    ("kombu/transport/redis.py", "kombu-redis"),
    ("pika/", "pika"),
    ("amqpstorm/", "amqp"),
    ("kombu/", "kombu"),
    ("celery/", "kombu"),
    ("amqp/", "amqp"),
    ("redis/", "redis"),
    ("valkey/", "redis"),
    ("psycopg/", "postgresql"),
    ("psycopg2/", "postgresql"),
    ("asyncpg/", "postgresql"),
    ("pg8000/", "postgresql"),
    ("pymysql/", "mysql"),
    ("MySQLdb/", "mysql"),
    ("mysql/connector/", "mysql"),
    ("pymongo/", "mongo"),
    ("grpc/", "grpc"),
)
_BY_FAMILY = {"amqp": "kombu", "redis": "redis", "http": "http", "mongo": "mongo", "grpc": "grpc"}
_SQL_PACKAGES = (
    ("postgresql", ("psycopg2", "psycopg2-binary", "psycopg", "asyncpg", "pg8000", "psycopg2cffi")),
    ("mysql", ("pymysql", "mysqlclient", "mysql-connector-python")),
)


def client_of(snapshot: Snapshot, wait: Wait | None) -> Client:
    """The library whose settings bound this wait."""
    if wait is None:
        return OTHER
    found: list[str] = []
    for frame in wait.frames:
        key = next((key for tail, key in _BY_FILE if f"/{tail}" in f"/{frame.file}" or frame.file.endswith(tail)), None)
        if key is not None:
            found.append(key)
    family = wait.reading.family
    if "kombu-redis" in found and family == "redis":
        return CLIENTS["kombu-redis"]
    if found and family in ("amqp", "redis", "sql", "mongo", "grpc", "loop", "retry"):
        wanted = {"amqp": ("kombu", "amqp", "pika"), "redis": ("redis",), "sql": ("postgresql", "mysql")}.get(
            family, ()
        )
        # The outermost library of the family is the one whose settings the program can reach.
        matching = [key for key in found if not wanted or key in wanted]
        if matching:
            return CLIENTS[matching[-1]]
    if family == "sql":
        return CLIENTS.get(_sql(snapshot), OTHER)
    return CLIENTS.get(_BY_FAMILY.get(family, ""), OTHER)


def _sql(snapshot: Snapshot) -> str:
    for key, packages in _SQL_PACKAGES:
        if any(package in snapshot.process.packages for package in packages):
            return key
    if any(name.startswith("libpq") for name in snapshot.process.hooked_c_clients):
        return "postgresql"
    if any(name.startswith(("libmysqlclient", "libmariadb")) for name in snapshot.process.hooked_c_clients):
        return "mysql"
    return ""
