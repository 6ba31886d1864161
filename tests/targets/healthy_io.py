"""Healthy processes that wait for input, connections, signals, timers and files. The first argument names the case."""

import ctypes
import fcntl
import http.client
import http.server
import os
import pty
import select
import selectors
import signal
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import time
import tty
import xmlrpc.server

from ready import say_ready

libc = ctypes.CDLL(None)


def local_server() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def connected() -> tuple[socket.socket, socket.socket]:
    with local_server() as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def spawn(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def accepts():
    with local_server() as server:
        say_ready()
        server.accept()


def accepts_with_timeout():
    with local_server() as server:
        server.settimeout(1)
        say_ready()
        while True:
            try:
                server.accept()
            except TimeoutError:
                continue


def listen_socket_of_many():
    """Workers that were forked over one LISTEN socket."""
    with local_server() as server:
        for _ in range(3):
            if os.fork() == 0:
                os.environ.pop("READY_FD", None)
                server.accept()
        say_ready()
        server.accept()


def datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        say_ready()
        server.recvfrom(1000)


def unix_server():
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0healthy-{os.getpid()}")
        server.listen()
        say_ready()
        server.accept()


def socket_pair():
    left, right = socket.socketpair()
    say_ready()
    left.recv(1)
    right.close()


def netlink():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as events:
        events.bind((0, 1 << 30))
        say_ready()
        events.recv(1000)


def consumer_of_a_raw_connection():
    """Reads what a peer sends once in a while; nothing is owed."""
    client, server = connected()

    def sends():
        while True:
            time.sleep(5)
            server.send(b"event")

    spawn(sends)
    say_ready()
    while True:
        client.recv(100)


def listener_of_a_quiet_connection():
    client, server = connected()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def wait_for_messages():
        client.recv(100)

    say_ready()
    wait_for_messages()
    server.close()


def selects():
    watched = selectors.DefaultSelector()
    watched.register(local_server(), selectors.EVENT_READ)
    say_ready()
    while True:
        watched.select()


def selects_briefly():
    """The main loop of many servers: half a second, then its housekeeping."""
    with local_server() as server:
        say_ready()
        while True:
            select.select([server], [], [], 0.5)


def polls_for_ever():
    left, right = socket.socketpair()
    poller = select.poll()
    poller.register(left, select.POLLIN)
    say_ready()
    poller.poll()
    right.close()


def polls_an_idle_connection():
    """An idle pooled connection is watched for its end."""
    client, server = connected()
    watched = selectors.EpollSelector()
    watched.register(client, selectors.EVENT_READ)
    say_ready()
    while True:
        watched.select(2)
        server.fileno()


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(100)


def tcp_server():
    with socketserver.TCPServer(("127.0.0.1", 0), Echo) as server:
        say_ready()
        server.serve_forever()


def forking_server():
    with socketserver.ForkingTCPServer(("127.0.0.1", 0), Echo) as server:
        say_ready()
        server.serve_forever()


class Streams(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        slow = self.path == "/slow"
        self.send_header("Content-Length", "1000000" if slow else "0")
        self.end_headers()
        while slow:
            self.wfile.write(b"x")
            time.sleep(0.4)

    def log_message(self, *args):
        pass


def http_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Streams)
    say_ready()
    server.serve_forever()


def http_keepalive():
    """A client and a server that keep an idle connection for the next request."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Streams)
    spawn(server.serve_forever)
    client = http.client.HTTPConnection("127.0.0.1", server.server_port)
    client.request("GET", "/")
    client.getresponse().read()
    say_ready()
    threading.Event().wait()


def slow_download():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Streams)
    spawn(server.serve_forever)
    client = http.client.HTTPConnection("127.0.0.1", server.server_port)
    client.request("GET", "/slow")
    say_ready()
    client.getresponse().read()


def slow_upload():
    """The reader takes a little at a time, so the writer waits for room again and again."""
    client, server = connected()

    def reads():
        while server.recv(300_000):
            time.sleep(0.1)

    spawn(reads)
    say_ready()
    while True:
        client.sendall(b"x" * 1_000_000)


def xmlrpc_server():
    server = xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0))
    say_ready()
    server.serve_forever()


def pauses():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    say_ready()
    signal.pause()


def sigwaits():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    say_ready()
    signal.sigwait({signal.SIGUSR1})


def sigtimedwaits():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    say_ready()
    while True:
        signal.sigtimedwait({signal.SIGUSR1}, 1)


def self_pipe():
    """A signal handler writes into the pipe that the main loop watches."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    say_ready()
    select.select([reader], [], [])


def self_pipe_read():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    say_ready()
    os.read(reader, 1)


def self_pipe_of_a_handler():
    """The handler itself writes, into a pipe that blocks."""
    reader, writer = os.pipe()
    signal.signal(signal.SIGUSR1, lambda *_: os.write(writer, b"x"))
    say_ready()
    os.read(reader, 1)


def message_queue():
    messages = libc.msgget(0, 0o600)
    say_ready()
    libc.msgrcv(messages, ctypes.create_string_buffer(100), 50, 0, 0)


def system_v_semaphore():
    slots = libc.semget(0, 1, 0o600)
    say_ready()
    libc.semop(slots, (ctypes.c_short * 3)(0, -1, 0), 1)


def exclusive_epoll():
    epoll = select.epoll()
    epoll.register(local_server(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
    say_ready()
    epoll.poll()


def pipe_between_threads():
    """One thread tells the other through a pipe of the process."""
    reader, writer = os.pipe()

    def tells():
        while True:
            time.sleep(3)
            os.write(writer, b"x")

    spawn(tells)
    say_ready()
    while True:
        os.read(reader, 1)


def anonymous(fd: int) -> None:
    assert fd >= 0
    say_ready()
    os.read(fd, 4096)


def inotify():
    fd = libc.inotify_init()
    libc.inotify_add_watch(fd, b"/proc/self/root/usr", 0x100)
    anonymous(fd)


def timerfd():
    fd = libc.timerfd_create(1, 0)
    libc.timerfd_settime(fd, 0, struct.pack("4q", 3600, 0, 3600, 0), None)
    anonymous(fd)


def eventfd():
    anonymous(os.eventfd(0))


def signalfd():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    anonymous(libc.signalfd(-1, (ctypes.c_ulong * 1)(1 << (signal.SIGUSR1 - 1)), 0))


def epoll_of_eventfd():
    epoll = select.epoll()
    epoll.register(os.eventfd(0), select.EPOLLIN)
    say_ready()
    epoll.poll()


def terminal_input():
    """A person may type something, at any time."""
    child, _ = pty.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        input("? ")
    say_ready()
    os.waitpid(child, 0)


def terminal_prompt():
    child, _ = pty.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        os.execv(sys.executable, [sys.executable, "-q"])
    say_ready()
    os.waitpid(child, 0)


def debugger_prompt():
    child, _ = pty.fork()
    if child == 0:
        os.environ.pop("READY_FD", None)
        import pdb

        pdb.set_trace()
        threading.Event().wait()
    say_ready()
    os.waitpid(child, 0)


def terminal_relay():
    """Copies a shell's terminal, as script(1) does."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv("/bin/cat", ["cat"])
    tty.setraw(terminal)
    say_ready()
    os.read(terminal, 100)


def follows_a_file():
    with tempfile.TemporaryFile("r") as file:
        say_ready()
        while True:
            if not file.readline():
                time.sleep(0.5)


def named_pipe():
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/orders")
        # Both ends, so that it never ends: what many daemons do.
        orders = os.open(f"{folder}/orders", os.O_RDWR)
        say_ready()
        os.read(orders, 1)


def named_pipe_opens():
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/orders")
        say_ready()
        os.open(f"{folder}/orders", os.O_RDONLY)


def filter_program():
    """Reads what its parent writes once in a while, as in a shell's pipeline."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.environ.pop("READY_FD", None)
        os.close(writer)
        for _ in os.fdopen(reader):
            pass
        os._exit(0)
    os.close(reader)
    say_ready()
    while True:
        os.write(writer, b"line\n")
        time.sleep(7)


def file_lock_contended():
    """Two processes take turns at a lock on a file."""
    with tempfile.NamedTemporaryFile() as file:
        if os.fork() == 0:
            os.environ.pop("READY_FD", None)
        say_ready()
        with open(file.name, "a") as mine:
            while True:
                fcntl.flock(mine, fcntl.LOCK_EX)
                time.sleep(0.3)
                fcntl.flock(mine, fcntl.LOCK_UN)
                time.sleep(0.01)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
