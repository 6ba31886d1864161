"""Stacks as they were seen in real processes, innermost first, by what they are: for the tests of everything that reads them."""

from __future__ import annotations

from tests.unit.snapshots import SITE, STDLIB

APP = "/app/main.py"
MAIN = [f"main {APP}:40", f"<module> {APP}:50"]
THREAD = [
    f"Thread.run {STDLIB}threading.py:975",
    f"Thread._bootstrap_inner {STDLIB}threading.py:1038",
    f"Thread._bootstrap {STDLIB}threading.py:995",
]

_AMQP_READ = [
    f"TCPTransport._read {SITE}amqp/transport.py:652",
    f"_AbstractTransport.read_frame {SITE}amqp/transport.py:294",
    f"Connection.blocking_read {SITE}amqp/connection.py:532",
    f"Connection.drain_events {SITE}amqp/connection.py:527",
]
_KOMBU_DRAIN = [
    *_AMQP_READ,
    f"Transport.drain_events {SITE}kombu/transport/pyamqp.py:168",
    f"Connection.drain_events {SITE}kombu/connection.py:341",
]
CONFIRM = [
    *_AMQP_READ,
    f"Channel.wait {SITE}amqp/abstract_channel.py:99",
    f"Channel.basic_publish_confirm {SITE}amqp/channel.py:1805",
    f"Producer._publish {SITE}kombu/messaging.py:214",
    f"Producer.publish {SITE}kombu/messaging.py:190",
    f"Celery.send_task {SITE}celery/app/base.py:870",
    f"Task.apply_async {SITE}celery/app/task.py:590",
    *MAIN,
]
CANCEL = [
    *_AMQP_READ,
    f"Channel.wait {SITE}amqp/abstract_channel.py:99",
    f"Channel.basic_cancel {SITE}amqp/channel.py:1500",
    *MAIN,
]
KOMBU_CONSUMER = [*_KOMBU_DRAIN, *MAIN]
KOMBU_MIXIN = [
    *_KOMBU_DRAIN,
    f"ConsumerMixin.consume {SITE}kombu/mixins.py:194",
    f"ConsumerMixin.run {SITE}kombu/mixins.py:175",
    *MAIN,
]
AMQP_HANDSHAKE = [
    *_AMQP_READ,
    f"Connection.connect {SITE}amqp/connection.py:329",
    f"Transport.establish_connection {SITE}kombu/transport/pyamqp.py:200",
    *MAIN,
]

_PIKA_POLL = [
    f"EPollPoller.poll {SITE}pika/adapters/select_connection.py:1080",
    f"IOLoop.poll {SITE}pika/adapters/select_connection.py:500",
    f"BlockingConnection._flush_output {SITE}pika/adapters/blocking_connection.py:542",
]
PIKA_CONSUMER = [
    *_PIKA_POLL,
    f"BlockingConnection.process_data_events {SITE}pika/adapters/blocking_connection.py:900",
    f"BlockingChannel._process_data_events {SITE}pika/adapters/blocking_connection.py:2150",
    f"BlockingChannel.start_consuming {SITE}pika/adapters/blocking_connection.py:1970",
    *MAIN,
]
PIKA_PUBLISH_IN_CALLBACK = [
    *_PIKA_POLL,
    f"BlockingChannel._flush_output {SITE}pika/adapters/blocking_connection.py:1403",
    f"BlockingChannel.basic_publish {SITE}pika/adapters/blocking_connection.py:2340",
    f"on_message {APP}:12",
    f"BlockingChannel._dispatch_events {SITE}pika/adapters/blocking_connection.py:1590",
    f"BlockingChannel.start_consuming {SITE}pika/adapters/blocking_connection.py:1970",
    *MAIN,
]

_REDIS_READ = [
    f"SocketBuffer._read_from_socket {SITE}redis/_parsers/socket.py:64",
    f"SocketBuffer.readline {SITE}redis/_parsers/socket.py:117",
    f"_RESP3Parser._read_response {SITE}redis/_parsers/resp3.py:65",
    f"_RESP3Parser.read_response {SITE}redis/_parsers/resp3.py:40",
    f"AbstractConnection.read_response {SITE}redis/connection.py:1407",
]
_REDIS_COMMAND = [
    *_REDIS_READ,
    f"Redis.parse_response {SITE}redis/client.py:935",
    f"Redis._send_command_parse_response {SITE}redis/client.py:819",
    f"Redis._execute_command.<locals>.<lambda> {SITE}redis/client.py:890",
    f"Retry.call_with_retry {SITE}redis/retry.py:120",
    f"Redis._execute_command {SITE}redis/client.py:889",
    f"Redis.execute_command {SITE}redis/client.py:870",
]
BLPOP = [*_REDIS_COMMAND, f"ListCommands.blpop {SITE}redis/commands/core.py:2600", *MAIN]
XREAD = [*_REDIS_COMMAND, f"StreamCommands.xread {SITE}redis/commands/core.py:3900", *MAIN]
REDIS_GET = [*_REDIS_COMMAND, f"BasicKeyCommands.get {SITE}redis/commands/core.py:1800", *MAIN]
PUBSUB = [
    *_REDIS_READ,
    f"PubSub.parse_response.<locals>.try_read {SITE}redis/client.py:1200",
    f"PubSub._execute {SITE}redis/client.py:1150",
    f"PubSub.parse_response {SITE}redis/client.py:1210",
    f"PubSub.listen {SITE}redis/client.py:1350",
    *MAIN,
]
_HUB = [
    f"Hub.create_loop {SITE}kombu/asynchronous/hub.py:362",
    f"asynloop {SITE}celery/worker/loops.py:97",
    f"Consumer.start {SITE}celery/worker/consumer/consumer.py:340",
    *MAIN,
]
CELERY_REDIS_READ = [
    *_REDIS_READ,
    f"Redis.parse_response {SITE}redis/client.py:935",
    f"Channel._brpop_read {SITE}kombu/transport/redis.py:960",
    f"MultiChannelPoller.on_readable {SITE}kombu/transport/redis.py:380",
    f"Transport.on_readable {SITE}kombu/transport/redis.py:1200",
    *_HUB,
]
CELERY_IDLE = [f"_epoll.poll {SITE}kombu/utils/eventio.py:81", *_HUB]
CELERY_CHILD = [
    f"Connection._recv {SITE}billiard/connection.py:421",
    f"Connection._recv_bytes {SITE}billiard/connection.py:460",
    f"Connection.recv_bytes {SITE}billiard/connection.py:240",
    f"Worker._make_recv_method.<locals>._recv {SITE}billiard/pool.py:513",
    f"Worker._make_protected_receive.<locals>.receive {SITE}billiard/pool.py:535",
    f"Worker.workloop {SITE}billiard/pool.py:362",
    f"Worker.__call__ {SITE}billiard/pool.py:292",
    f"Process._bootstrap {SITE}billiard/process.py:327",
    *_HUB,
]
CELERY_BEAT = [f"Service.start {SITE}celery/beat.py:1070", *MAIN]
RETRY_CONNECT = [
    f"retry_over_time {SITE}kombu/utils/functional.py:340",
    f"Connection._ensure_connection {SITE}kombu/connection.py:440",
    f"Connection.ensure_connection {SITE}kombu/connection.py:390",
    *MAIN,
]
RETRY_TASK = [
    f"sleep {SITE}tenacity/nap.py:31",
    f"Retrying.__call__ {SITE}tenacity/__init__.py:480",
    f"fetch_all {APP}:20",
    *MAIN,
]

PSYCOPG3 = [
    f"Connection.wait {SITE}psycopg/connection.py:480",
    f"Cursor.execute {SITE}psycopg/cursor.py:117",
    *MAIN,
]
PSYCOPG3_LISTEN = [
    f"Connection.wait {SITE}psycopg/connection.py:480",
    f"Connection.notifies {SITE}psycopg/connection.py:350",
    *MAIN,
]
SQLALCHEMY_C = [
    f"DefaultDialect.do_execute {SITE}sqlalchemy/engine/default.py:951",
    f"Connection._exec_single_context {SITE}sqlalchemy/engine/base.py:1960",
    *MAIN,
]

_HTTP_READ = [
    f"SocketIO.readinto {STDLIB}socket.py:706",
    f"HTTPResponse._read_status {STDLIB}http/client.py:286",
    f"HTTPResponse.begin {STDLIB}http/client.py:325",
    f"HTTPConnection.getresponse {STDLIB}http/client.py:1390",
]
REQUESTS = [
    *_HTTP_READ,
    f"HTTPConnection.getresponse {SITE}urllib3/connection.py:516",
    f"HTTPConnectionPool._make_request {SITE}urllib3/connectionpool.py:534",
    f"HTTPConnectionPool.urlopen {SITE}urllib3/connectionpool.py:787",
    f"HTTPAdapter.send {SITE}requests/adapters.py:667",
    f"Session.send {SITE}requests/sessions.py:703",
    f"get {SITE}requests/api.py:73",
    f"charge {APP}:12",
    *MAIN,
]
STREAM = [
    f"SocketIO.readinto {STDLIB}socket.py:706",
    f"HTTPResponse._read_next_chunk_size {STDLIB}http/client.py:530",
    f"HTTPResponse.read_chunked {SITE}urllib3/response.py:1160",
    f"HTTPResponse.stream {SITE}urllib3/response.py:1040",
    f"Response.iter_content.<locals>.generate {SITE}requests/models.py:820",
    f"Response.iter_lines {SITE}requests/models.py:870",
    *MAIN,
]
TLS = [f"SSLSocket.do_handshake {STDLIB}ssl.py:1346", f"SSLSocket._create {STDLIB}ssl.py:1104", *MAIN]
RESOLVE = [f"getaddrinfo {STDLIB}socket.py:962", f"create_connection {SITE}urllib3/util/connection.py:60", *MAIN]
SMTP_GREETING = [
    f"SocketIO.readinto {STDLIB}socket.py:706",
    f"SMTP.getreply {STDLIB}smtplib.py:398",
    f"SMTP.connect {STDLIB}smtplib.py:343",
    *MAIN,
]

GUNICORN_SYNC_IDLE = [
    f"SyncWorker.wait {SITE}gunicorn/workers/sync.py:34",
    f"SyncWorker.run_for_one {SITE}gunicorn/workers/sync.py:82",
    f"SyncWorker.run {SITE}gunicorn/workers/sync.py:130",
    *MAIN,
]
_SYNC_HANDLE = [
    f"SyncWorker.handle {SITE}gunicorn/workers/sync.py:134",
    f"SyncWorker.accept {SITE}gunicorn/workers/sync.py:30",
    f"SyncWorker.run_for_one {SITE}gunicorn/workers/sync.py:71",
    f"SyncWorker.run {SITE}gunicorn/workers/sync.py:130",
    *MAIN,
]
GUNICORN_READS = [
    f"SocketUnreader.chunk {SITE}gunicorn/http/unreader.py:96",
    f"Unreader.read {SITE}gunicorn/http/unreader.py:40",
    f"Request.read_into {SITE}gunicorn/http/message.py:700",
    f"RequestParser.__next__ {SITE}gunicorn/http/parser.py:107",
    *_SYNC_HANDLE,
]
GUNICORN_WRITES = [
    f"write {SITE}gunicorn/util.py:300",
    f"Response.write {SITE}gunicorn/http/wsgi.py:480",
    *_SYNC_HANDLE,
]
GTHREAD_READS = [
    *GUNICORN_READS[:4],
    f"ThreadWorker.handle {SITE}gunicorn/workers/gthread.py:514",
    f"_WorkItem.run {STDLIB}concurrent/futures/thread.py:58",
    f"_worker {STDLIB}concurrent/futures/thread.py:83",
    *THREAD,
]
GTHREAD_MAIN = [
    f"EpollSelector.select {STDLIB}selectors.py:468",
    f"ThreadWorker.wait_for_and_dispatch_events {SITE}gunicorn/workers/gthread.py:398",
    f"ThreadWorker.run {SITE}gunicorn/workers/gthread.py:430",
    *MAIN,
]
GUNICORN_MASTER = [
    f"Arbiter.wait_for_signals {SITE}gunicorn/arbiter.py:425",
    f"Arbiter.run {SITE}gunicorn/arbiter.py:260",
    *MAIN,
]
HTTP_SERVER_READS = [
    f"SocketIO.readinto {STDLIB}socket.py:706",
    f"BaseHTTPRequestHandler.handle_one_request {STDLIB}http/server.py:400",
    f"BaseHTTPRequestHandler.handle {STDLIB}http/server.py:436",
    f"BaseServer.finish_request {STDLIB}socketserver.py:361",
    f"BaseServer.serve_forever {STDLIB}socketserver.py:238",
    *MAIN,
]
HTTP_SERVER_THREAD_READS = [
    *HTTP_SERVER_READS[:4],
    f"ThreadingMixIn.process_request_thread {STDLIB}socketserver.py:691",
    *THREAD,
]

POOL_IDLE = [f"_worker {STDLIB}concurrent/futures/thread.py:81", *THREAD]
POOL_RUNS_C = [
    f"_WorkItem.run {STDLIB}concurrent/futures/thread.py:58",
    f"_worker {STDLIB}concurrent/futures/thread.py:83",
    *THREAD,
]
QUEUE_GET = [f"Condition.wait {STDLIB}threading.py:320", f"Queue.get {STDLIB}queue.py:171", *MAIN]
EVENT_WAIT = [f"Condition.wait {STDLIB}threading.py:320", f"Event.wait {STDLIB}threading.py:622", *MAIN]
JOIN = [f"Thread._wait_for_tstate_lock {STDLIB}threading.py:1116", f"Thread.join {STDLIB}threading.py:1096", *MAIN]
FUTURE = [f"Condition.wait {STDLIB}threading.py:320", f"Future.result {STDLIB}concurrent/futures/_base.py:451", *MAIN]
ASYNCIO_IDLE = [
    f"EpollSelector.select {STDLIB}selectors.py:468",
    f"BaseEventLoop._run_once {STDLIB}asyncio/base_events.py:1884",
    f"BaseEventLoop.run_forever {STDLIB}asyncio/base_events.py:607",
    f"run {STDLIB}asyncio/runners.py:190",
    *MAIN,
]
ASYNCIO_CALLBACK = [
    *REQUESTS[:-2],
    f"Handle._run {STDLIB}asyncio/events.py:80",
    f"BaseEventLoop._run_once {STDLIB}asyncio/base_events.py:1922",
    f"BaseEventLoop.run_forever {STDLIB}asyncio/base_events.py:607",
    *MAIN,
]
MP_CHILD = [
    f"SemLock.__enter__ {STDLIB}multiprocessing/synchronize.py:95",
    f"SimpleQueue.get {STDLIB}multiprocessing/queues.py:364",
    f"worker {STDLIB}multiprocessing/pool.py:114",
    f"BaseProcess.run {STDLIB}multiprocessing/process.py:108",
    f"BaseProcess._bootstrap {STDLIB}multiprocessing/process.py:314",
    *MAIN,
]
MANAGER_QUEUE_GET = [
    f"Connection._recv {STDLIB}multiprocessing/connection.py:395",
    f"_ConnectionBase.recv {STDLIB}multiprocessing/connection.py:250",
    f"BaseProxy._callmethod {STDLIB}multiprocessing/managers.py:822",
    "get <string>:2",
    *MAIN,
]
HANDLER = [
    f"Handler.acquire {STDLIB}logging/__init__.py:917",
    f"Handler.handle {STDLIB}logging/__init__.py:966",
    f"Logger.callHandlers {STDLIB}logging/__init__.py:1696",
    *MAIN,
]
IMPORT_LOCK = [
    "_ModuleLock.acquire <frozen importlib._bootstrap>:117",
    "_ModuleLockManager.__enter__ <frozen importlib._bootstrap>:170",
    "_find_and_load <frozen importlib._bootstrap>:1174",
    *MAIN,
]
SUBPROCESS = [
    f"Popen._try_wait {STDLIB}subprocess.py:1960",
    f"Popen.wait {STDLIB}subprocess.py:1264",
    f"run {STDLIB}subprocess.py:550",
    *MAIN,
]
