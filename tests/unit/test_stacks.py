"""What stacks mean: the field's libraries, their look-alikes, and libraries that nobody knows."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import stacks, vocabulary
from stucktrace.diagnosis.purposes import Purpose as P

from tests.unit import known_stacks as k
from tests.unit.snapshots import SITE, STDLIB, frame, frames


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("CONFIRM", P.OWED),
        ("CANCEL", P.OWED),
        ("AMQP_HANDSHAKE", P.OWED),
        ("KOMBU_CONSUMER", P.SUBSCRIPTION),
        ("KOMBU_MIXIN", P.SUBSCRIPTION),
        ("PIKA_CONSUMER", P.SUBSCRIPTION),
        ("PIKA_PUBLISH_IN_CALLBACK", P.OWED),
        ("BLPOP", P.SUBSCRIPTION),
        ("XREAD", P.SUBSCRIPTION),
        ("PUBSUB", P.SUBSCRIPTION),
        ("REDIS_GET", P.REQUEST),
        ("CELERY_REDIS_READ", P.REQUEST),
        ("CELERY_IDLE", P.WORK),
        ("CELERY_CHILD", P.WORK),
        ("CELERY_BEAT", P.WORK),
        ("RETRY_CONNECT", P.RETRY),
        ("RETRY_TASK", P.RETRY),
        ("PSYCOPG3", P.REQUEST),
        ("PSYCOPG3_LISTEN", P.SUBSCRIPTION),
        ("SQLALCHEMY_C", P.REQUEST),
        ("REQUESTS", P.REQUEST),
        ("STREAM", P.SUBSCRIPTION),
        ("TLS", P.OWED),
        ("RESOLVE", P.RESOLVE),
        ("SMTP_GREETING", P.OWED),
        ("GUNICORN_SYNC_IDLE", P.WORK),
        ("GUNICORN_READS", P.INBOUND),
        ("GUNICORN_WRITES", P.SEND),
        ("GTHREAD_READS", P.INBOUND),
        ("GTHREAD_MAIN", P.WORK),
        ("GUNICORN_MASTER", P.WORK),
        ("HTTP_SERVER_READS", P.INBOUND),
        ("POOL_IDLE", P.WORK),
        ("POOL_RUNS_C", P.UNKNOWN),
        ("QUEUE_GET", P.WORK),
        ("EVENT_WAIT", P.CONDITION),
        ("JOIN", P.JOIN),
        ("FUTURE", P.JOIN),
        ("ASYNCIO_IDLE", P.WORK),
        ("ASYNCIO_CALLBACK", P.REQUEST),
        ("MP_CHILD", P.WORK),
        ("MANAGER_QUEUE_GET", P.SUBSCRIPTION),
        ("HANDLER", P.LOCK),
        ("IMPORT_LOCK", P.LOCK),
        ("SUBPROCESS", P.JOIN),
    ],
)
def test_known_stacks(name: str, purpose: P) -> None:
    stack = frames(getattr(k, name))
    reading = stacks.read(stack)
    assert reading.purpose is purpose, reading
    if purpose is not P.UNKNOWN:
        assert reading.reason
        assert reading.frame is not None and 0 <= reading.frame < len(stack)


@pytest.mark.parametrize("name", [name for name in dir(k) if name.isupper() and name not in ("APP", "SITE", "STDLIB")])
def test_names_without_classes_read_the_same(name: str) -> None:
    """Before CPython 3.11 py-spy gives bare function names."""
    qualified = getattr(k, name)
    bare = [f"{text.split(' ')[0].rsplit('.', 1)[-1]} {text.split(' ', 1)[1]}" for text in qualified]
    assert stacks.read(frames(bare)).purpose is stacks.read(frames(qualified)).purpose


def test_the_confirm_is_named() -> None:
    reading = stacks.read(frames(k.CONFIRM))
    assert "basic_publish_confirm" in reading.reason
    assert reading.family == "amqp"
    assert frames(k.CONFIRM)[reading.frame or 0].function == "Channel.basic_publish_confirm"


def test_no_frames() -> None:
    assert stacks.read(()).purpose is P.UNKNOWN
    assert stacks.read(()).frame is None


def test_the_monitor_of_a_mongo_driver_is_no_handshake() -> None:
    stack = [
        f"receive_data {SITE}pymongo/network_layer.py:300",
        f"Connection._hello {SITE}pymongo/pool.py:330",
        f"Monitor._check_with_socket {SITE}pymongo/monitor.py:290",
        *k.THREAD,
    ]
    assert stacks.read(frames(stack)).purpose is P.SUBSCRIPTION
    assert stacks.read(frames(stack[:2])).purpose is P.OWED


def test_native_frames_are_passed_over() -> None:
    stack = frames(["native recv libc.so.6", "native sock_recv python3.11", *k.BLPOP])
    assert stacks.read(stack).purpose is P.SUBSCRIPTION


def test_instrumentation_between_is_passed_over() -> None:
    wrapper = f"_install.<locals>.sentry_patched_execute_command {SITE}sentry_sdk/integrations/redis/_sync_common.py:90"
    index = next(i for i, text in enumerate(k.BLPOP) if "ListCommands" in text)
    assert stacks.read(frames([*k.BLPOP[:index], wrapper, *k.BLPOP[index:]])).purpose is P.SUBSCRIPTION


def test_a_command_inside_a_subscription_callback_is_a_command() -> None:
    """The listener's frame lies above, but it called the handler: the handler waits for a reply."""
    stack = [*k.REDIS_GET[:-2], f"on_message {k.APP}:9", f"PubSub.listen {SITE}redis/client.py:1350", *k.MAIN]
    assert stacks.read(frames(stack)).purpose is P.REQUEST


def test_user_code_under_a_pool_is_not_idle() -> None:
    stack = [f"my_task {k.APP}:7", *k.POOL_RUNS_C]
    reading = stacks.read(frames(stack))
    assert reading.purpose is P.UNKNOWN
    assert reading.frame == 0


def test_a_forked_child_is_not_read_by_its_parents_past() -> None:
    stack = [
        f"worker {STDLIB}multiprocessing/pool.py:125",
        f"BaseProcess.run {STDLIB}multiprocessing/process.py:108",
        f"BaseProcess._bootstrap {STDLIB}multiprocessing/process.py:314",
        f"ConsumerMixin.consume {SITE}kombu/mixins.py:194",
        *k.MAIN,
    ]
    reading = stacks.read(frames(stack))
    assert (reading.purpose, reading.frame) == (P.UNKNOWN, 0)


UNKNOWN_LIBRARY = [f"Conn._read_packet {SITE}brandnewdb/conn.py:40", f"Conn._recv_exact {SITE}brandnewdb/conn.py:55"]


@pytest.mark.parametrize(
    ("function", "purpose"),
    [
        ("Client.query", P.REQUEST),
        ("Client.execute", P.REQUEST),
        ("Client.listen", P.SUBSCRIPTION),
        ("Client.wait_for_message", P.SUBSCRIPTION),
        ("Consumer.start_consuming", P.SUBSCRIPTION),
        ("Client.frobnicate", P.UNKNOWN),
        ("getNextJob", P.SUBSCRIPTION),
    ],
)
def test_libraries_that_nobody_knows_are_read_by_their_names(function: str, purpose: P) -> None:
    stack = [*UNKNOWN_LIBRARY, f"{function} {SITE}brandnewdb/client.py:70", *k.MAIN]
    reading = stacks.read(frames(stack))
    assert reading.purpose is purpose
    assert reading.by_name is (purpose is not P.UNKNOWN)


def test_a_name_in_another_library_does_not_count() -> None:
    """brandnewq.listen called a handler, which is in brandnewdb now."""
    stack = [*UNKNOWN_LIBRARY, f"Bus.listen {SITE}brandnewq/bus.py:70", *k.MAIN]
    assert stacks.read(frames(stack)).purpose is P.UNKNOWN


@pytest.mark.parametrize("function", ["query", "request", "call", "fetch", "execute"])
def test_a_request_by_name_needs_an_installed_library(function: str) -> None:
    assert stacks.read(frames([f"{function} {k.APP}:5", *k.MAIN])).purpose is P.UNKNOWN


@pytest.mark.parametrize("function", ["consume", "listen", "poll", "next_job"])
def test_a_subscription_by_name_needs_none(function: str) -> None:
    reading = stacks.read(frames([f"recv_line {k.APP}:3", f"{function} {k.APP}:5", *k.MAIN]))
    assert reading.purpose is P.SUBSCRIPTION
    assert reading.by_name


def test_odd_frames() -> None:
    stack = (frame(" :0"), frame("<lambda> <string>:1"), frame("f <stdin>:1"), frame("x.y.z ../../a:1"))
    assert stacks.read(stack).purpose is P.UNKNOWN


def test_every_entry_has_a_reason_and_files() -> None:
    for entry in vocabulary.ENTRIES:
        assert entry.files and entry.functions
        assert entry.purpose is None or entry.reason, entry


HTTP = f"{STDLIB}http/client.py"
MANAGERS = f"{STDLIB}multiprocessing/managers.py"


@pytest.mark.parametrize(
    ("what", "stack", "purpose"),
    [
        ("lines of a chunked response", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"HTTPResponse._read_next_chunk_size {HTTP}:526",
            f"HTTPResponse._get_chunk_left {HTTP}:561", f"HTTPResponse._peek_chunked {HTTP}:731",
            f"HTTPResponse.peek {HTTP}:680", f"HTTPResponse.readline {HTTP}:690",
        ], P.SUBSCRIPTION),
        ("amid a chunk", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"HTTPResponse._safe_read {HTTP}:631",
            f"HTTPResponse._read_chunked {HTTP}:591", f"HTTPResponse.read {HTTP}:466",
        ], P.REQUEST),
        ("all of a chunked response", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"HTTPResponse._read_next_chunk_size {HTTP}:526",
            f"HTTPResponse._get_chunk_left {HTTP}:561", f"HTTPResponse._read_chunked {HTTP}:589",
            f"HTTPResponse.read {HTTP}:466",
        ], P.REQUEST),
        ("a response of a known length, piece by piece", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"HTTPResponse.readinto {HTTP}:504",
            f"HTTPResponse._raw_read {SITE}urllib3/response.py:900", f"HTTPResponse.read {SITE}urllib3/response.py:950",
            f"HTTPResponse.stream {SITE}urllib3/response.py:1066", f"generate {SITE}requests/models.py:820",
        ], P.REQUEST),
        ("a chunked response, piece by piece", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"HTTPResponse._update_chunk_length {SITE}urllib3/response.py:1100",
            f"HTTPResponse.read_chunked {SITE}urllib3/response.py:1250",
            f"HTTPResponse.stream {SITE}urllib3/response.py:1066", f"generate {SITE}requests/models.py:820",
        ], P.SUBSCRIPTION),
        ("all of it, by requests", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"HTTPResponse._update_chunk_length {SITE}urllib3/response.py:1100",
            f"HTTPResponse.read_chunked {SITE}urllib3/response.py:1250",
            f"HTTPResponse.stream {SITE}urllib3/response.py:1066", f"generate {SITE}requests/models.py:820",
            f"Response.content {SITE}requests/models.py:902", f"Session.send {SITE}requests/sessions.py:746",
        ], P.REQUEST),
        ("a queue in a manager process", [
            f"Connection._recv {STDLIB}multiprocessing/connection.py:378",
            f"BaseProxy._callmethod {MANAGERS}:822", "get <string>:2",
        ], P.SUBSCRIPTION),
        ("an event in a manager process", [
            f"Connection._recv {STDLIB}multiprocessing/connection.py:378",
            f"BaseProxy._callmethod {MANAGERS}:822", f"EventProxy.wait {MANAGERS}:1093",
        ], P.SUBSCRIPTION),
        ("the block of a subscription, the parser called directly", [
            f"AbstractConnection.read_response {SITE}redis/connection.py:900",
            f"PubSub.parse_response.<locals>.try_read {SITE}redis/client.py:1000",
            f"Retry.call_with_retry {SITE}redis/retry.py:80", f"PubSub._execute {SITE}redis/client.py:950",
            f"PubSub.parse_response {SITE}redis/client.py:1010",
        ], P.SUBSCRIPTION),
        ("a line of the mail server that the program reads itself, in IDLE", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"IMAP4.readline {STDLIB}imaplib.py:319",
        ], P.SUBSCRIPTION),
        ("a reply of the mail server", [
            f"SocketIO.readinto {STDLIB}socket.py:706", f"IMAP4.readline {STDLIB}imaplib.py:319",
            f"IMAP4._get_line {STDLIB}imaplib.py:1216", f"IMAP4._get_response {STDLIB}imaplib.py:1138",
            f"IMAP4._get_tagged_response {STDLIB}imaplib.py:1195",
        ], P.REQUEST),
        ("a method that the program itself waits for", [
            f"Connection.drain_events {SITE}amqp/connection.py:526", f"AbstractChannel.wait {SITE}amqp/abstract_channel.py:99",
        ], P.SUBSCRIPTION),
        ("a reply that amqp waits for", [
            f"Connection.drain_events {SITE}amqp/connection.py:526", f"AbstractChannel.wait {SITE}amqp/abstract_channel.py:99",
            f"AbstractChannel.send_method {SITE}amqp/abstract_channel.py:66", f"Channel.unheard_of {SITE}amqp/channel.py:9",
        ], P.OWED),
    ],
)  # fmt: skip
def test_streams_and_replies(what: str, stack: list[str], purpose: P) -> None:
    assert stacks.read(frames([*stack, *k.MAIN])).purpose is purpose, what
