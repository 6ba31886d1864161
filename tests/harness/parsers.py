"""Every parser of foreign data, by family: how it is called, real samples to begin with, and what it may raise."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import socket
import struct
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from stucktrace import (
    alerts,
    broker_urls,
    facts_codec,
    incidents,
    recorded_timeouts,
    recording,
    replay,
    report,
    settings,
)
from stucktrace.collectors import (
    addresses,
    amqp_layer,
    amqp_methods,
    amqp_tables,
    broker_view_found,
    broker_view_management,
    broker_view_redis,
    cfi,
    cgroups,
    code_lines,
    command_line,
    conntrack_events,
    conntrack_proc,
    containers,
    ctnetlink,
    dwarf_bytes,
    dwarf_expressions,
    elf,
    epoll,
    exception_table,
    file_locks,
    gunicorn_config,
    loops,
    memory,
    netlink,
    nft_rules,
    packages,
    packet_file,
    packets,
    pipe_ends,
    pod_list,
    proc_net,
    procfs,
    pyspy,
    python,
    rabbitmq_log,
    regions,
    resp,
    settings_files,
    sock_diag,
    source_lines,
    symbols,
)
from stucktrace.collectors.acquire_lines import Function
from stucktrace.collectors.amqp_redaction import Redaction
from stucktrace.collectors.amqp_wire import Conversations
from stucktrace.diagnosis.model import Budgets
from stucktrace.errors import CannotInspect, CollectorError, InvalidSettings, JournalError, UsageError
from stucktrace.sinks import journal, retry_after, sentry, sink, spool, text

Errors = tuple[type[Exception], ...]
NONE: Errors = ()
HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Parser:
    name: str
    """FAMILY.WHAT"""
    parse: Callable[[bytes], Any]
    samples: Callable[[], tuple[bytes, ...]]
    raises: Errors = NONE
    """As its own docstring says."""

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


def _text(function: Callable[[str], Any], errors: str = "surrogateescape") -> Callable[[bytes], Any]:
    return lambda data: function(data.decode(errors=errors))


def _proc(*names: str) -> Callable[[], tuple[bytes, ...]]:
    """These files of our own process."""
    return lambda: tuple(Path("/proc/self", name).read_bytes()[:20_000] for name in names)


def _given(*samples: bytes) -> Callable[[], tuple[bytes, ...]]:
    return lambda: samples


@contextlib.contextmanager
def _file(data: bytes, name: str = "sample") -> Any:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path


class _Everything:
    """Contains every inode."""

    def __contains__(self, _: object) -> bool:
        return True


# /proc

KUBEPODS = b"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f2e3d4c_1111_2222_3333_444455556666.slice/cri-containerd-" + b"ab" * 32 + b".scope\n"  # fmt: skip
LOCKS = b"1: FLOCK  ADVISORY  WRITE 3412 00:1a:123 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 99 00:1a:123 0 EOF\n2: POSIX ADVISORY READ -1 fd:01:9 10 20\n"
EPOLLS = (
    b"pos:\t0\nflags:\t02\nmnt_id:\t15\ntfd:        7 events:       19 data:                7  pos:0 ino:3a sdev:9\n"
)


CONNTRACK = b"ipv4     2 tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=5672 src=10.0.0.2 dst=10.0.0.1 sport=5672 dport=40000 [ASSURED] mark=0 zone=0 use=2\n"


def _poll_calls(data: bytes) -> None:
    pipe_ends._call(data.split())


PROC = (
    Parser("proc.stat", _text(procfs.parse_stat), _proc("stat"), (ValueError, IndexError)),
    Parser("proc.status", _text(procfs.parse_status), _proc("status")),
    Parser("proc.maps", _text(regions.parse), _proc("maps")),
    Parser("proc.cgroup", _text(cgroups.parse), _given(KUBEPODS, b"12:pids:/user.slice\n0::/\n")),
    Parser("proc.cgroup-names", lambda data: containers.from_paths(cgroups.parse(data.decode(errors="replace"))), _given(KUBEPODS)),
    Parser("proc.mountinfo", _text(cgroups.parse_mounts), _proc("mountinfo")),
    Parser("proc.mountinfo-names", _text(containers.from_mounts), _proc("mountinfo")),
    Parser("proc.cmdline", lambda data: command_line.read(procfs.split_argv(data.decode(errors="surrogateescape"))), _given(
        b"/usr/bin/python3\0-m\0gunicorn\0-w\x004\0app:app\0", b"[celeryd: celery@h:ForkPoolWorker-1] -active- (worker -A p -c 4)\0",
        b"gunicorn: worker [app]\0")),
    Parser("proc.environ", _text(procfs.parse_environ), _given(b"PATH=/bin\0A=b=c\0\0")),
    Parser("proc.fdinfo-epoll", _text(epoll.parse), _given(EPOLLS)),
    Parser("proc.locks", _text(file_locks.parse), _given(LOCKS)),
    Parser("proc.syscall", _poll_calls, _given(b"0 0x3 0x7f00 0x10 0x0 0x0 0x0 0x7ffd 0x7f00\n", b"running\n", b"-1 0x7ffd 0x7f\n")),
    Parser("proc.net-tcp", lambda data: [*proc_net.parse_inet(iter(data.decode(errors="replace").splitlines()), "tcp", _Everything())], _proc("net/tcp")),
    Parser("proc.net-tcp6", lambda data: [*proc_net.parse_inet(iter(data.decode(errors="replace").splitlines()), "tcp6", _Everything())], _given(
        b"   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0\n")),
    Parser("proc.net-unix", lambda data: [*proc_net.parse_unix(iter(data.decode(errors="replace").splitlines()), _Everything())], _proc("net/unix")),
    Parser("proc.conntrack", conntrack_proc.parse_entry, _given(CONNTRACK)),
    Parser("proc.words", _text(command_line.split), _given(b"--bind 0.0.0.0:80 --config 'a b.py'")),
    Parser("proc.number", _text(command_line.number), _given(b"30", b"1e5", b"nan")),
    Parser("proc.endpoint", _text(addresses.parse_endpoint), _given(b"10.0.0.1:5672", b"[fe80::1]:80")),
)  # fmt: skip

# Netlink


def _attribute(kind: int, value: bytes) -> bytes:
    return netlink.attribute(kind, value)


def _tuple(kind: int) -> bytes:
    ip = _attribute(1, bytes([10, 0, 0, 1])) + _attribute(2, bytes([10, 0, 0, 2]))
    ports = _attribute(1, b"\x06") + _attribute(2, b"\x9c\x40") + _attribute(3, b"\x16\x28")
    return _attribute(kind | 0x8000, _attribute(1 | 0x8000, ip) + _attribute(2 | 0x8000, ports))


def _entry() -> bytes:
    state = _attribute(4 | 0x8000, _attribute(1 | 0x8000, _attribute(1, b"\x03")))
    return (
        _tuple(1)
        + _tuple(2)
        + _attribute(3, b"\0\0\0\x0e")
        + state
        + _attribute(7, b"\0\0\x10\0")
        + _attribute(18, b"\0\1")
    )


def _message(kind: int, body: bytes) -> bytes:
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 2, 0, 0) + body + bytes(-len(body) % 4)


def _inet() -> bytes:
    body = sock_diag.INET_MESSAGE.pack(
        2, 1, 1, 3, 0x901F, 0x1628, b"\x7f\0\0\1", b"\x7f\0\0\2", 0, 0, 0, 200, 1, 2, 0, 777
    )
    return body + _attribute(2, bytes(232))


def _unix() -> bytes:
    body = sock_diag.UNIX_MESSAGE.pack(1, 1, 1, 99, 1, 2)
    return (
        body
        + _attribute(0, b"\0abstract")
        + _attribute(2, struct.pack("=I", 98))
        + _attribute(4, struct.pack("=II", 1, 2))
    )


def _rule() -> bytes:
    def one(name: bytes, *parts: bytes) -> bytes:
        return _attribute(1, _attribute(1, name + b"\0") + _attribute(2, b"".join(parts)))

    ct = one(b"ct", _attribute(1, b"\0\0\0\1"), _attribute(2, b"\0\0\0\0"))
    mask = one(b"bitwise", _attribute(4, _attribute(1, b"\1\0\0\0")))
    compare = one(b"cmp", _attribute(2, b"\0\0\0\1"), _attribute(3, _attribute(1, bytes(4))))
    drop = one(b"immediate", _attribute(2, _attribute(2, _attribute(1, b"\0\0\0\0"))))
    return ct + mask + compare + drop


class _Netlink:
    """Answers with these bytes, over and over."""

    def __init__(self, data: bytes) -> None:
        self._data, self._left = data, 3

    def send(self, _: bytes) -> None:
        pass

    def recv(self, _: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TimeoutError
        return self._data

    def settimeout(self, _: float) -> None:
        pass


def _over_netlink(function: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> None:
        found = function(_Netlink(data))
        if isinstance(found, types.GeneratorType):
            list(found)

    return parse


_DONE = _message(netlink.NLMSG_DONE, struct.pack("=i", 0))
NETLINK = (
    Parser("netlink.messages", lambda data: [[*netlink.attributes(body)] for _, body in netlink.messages(data)], lambda: (_message(20, _inet()),)),
    Parser("netlink.tcp", _over_netlink(lambda asked: sock_diag.inet_sockets(asked, socket.AF_INET, 6, _Everything())), lambda: (_message(20, _inet()) + _DONE,), (OSError,)),
    Parser("netlink.tcp-one", _over_netlink(lambda asked: sock_diag.find_tcp(asked, b"\x7f\0\0\1", 1, b"\x7f\0\0\1", 2)), lambda: (_message(20, _inet()),), (OSError,)),
    Parser("netlink.connections", _over_netlink(sock_diag.connections), lambda: (_message(20, _inet()) + _DONE,), (OSError,)),
    Parser("netlink.listeners", _over_netlink(sock_diag.listeners), lambda: (_message(20, _inet()) + _DONE,), (OSError,)),
    Parser("netlink.unix", _over_netlink(sock_diag.unix_sockets), lambda: (_message(20, _unix()) + _DONE,), (OSError,)),
    Parser("netlink.tcp-info", sock_diag.parse_tcp_info, _given(bytes(range(240)), bytes(104)), (struct.error,)),
    Parser("netlink.conntrack", ctnetlink.decode_entry, lambda: (_entry(),)),
    Parser("netlink.conntrack-events", lambda data: conntrack_events.decode(data, 0.0), lambda: (_message(1 << 8, bytes(4) + _entry()), _message(1 << 8 | 2, bytes(4) + _entry()))),
    Parser("netlink.rule", nft_rules.decode_rule, lambda: (_rule(),)),
)  # fmt: skip

# Python: py-spy, code objects, sources, settings

DUMP = json.dumps([{"pid": 1, "thread_id": 140, "thread_name": "MainThread", "os_thread_id": 7, "active": True, "owns_gil": False, "frames": [
    {"name": "f", "filename": "/a.py", "module": None, "short_filename": "a.py", "line": 3, "locals": [
        {"name": "password", "addr": 1, "arg": True, "repr": "'amqp://u:p@h'"}]}]}]).encode()  # fmt: skip


def _dump(data: bytes) -> None:
    for thread in pyspy.parse(data):
        python._thread(thread, 1)
        python._pair(thread)


def _code() -> types.CodeType:
    source = "def f(a):\n    with a:\n        try:\n            g()\n        except E:\n            h(\n 1)\n    for i in a:\n        with b, c: pass\n"
    return next(item for item in compile(source, "x", "exec").co_consts if isinstance(item, types.CodeType))


def _line(minor: tuple[int, int]) -> Callable[[bytes], Any]:
    return lambda data: [code_lines.line(minor, data, 10, address) for address in (-1, 0, 8, 400)]


def _exceptions(data: bytes) -> None:
    for instruction in (0, 5, 40):
        exception_table.alive(data, instruction)
        exception_table.ends_at(data, instruction, 1)


SOURCE = b"""import x
broker_url = "amqp://u:p@h//"
CELERY_CONFIG = {"task_acks_late": True, "worker_prefetch_multiplier": 2 ** 3, "other": dict(a=1)}
if x.y:
    app.conf.update(broker_heartbeat=60 * 5, **more)
app.config_from_object("settings", namespace="CELERY")
bind = f"0.0.0.0:{port}"; workers = 2 * 4 + 1; timeout = -30
class A:
    def f(self):
        self.lock.acquire()
        try:
            while True:
                with self.lock, other: g(
                    1)
        finally:
            self.lock.release()
"""
_WANTED = ("broker_url", "task_acks_late", "broker_heartbeat", "bind", "workers", "timeout")


def _acquires(data: bytes) -> None:
    function = Function(data.decode(errors="replace"), 9, "f")
    if function.known:
        function.releases({"self.lock"})
        function.acquired({"self.lock"}, 12)


def _loops(data: bytes) -> None:
    lines = data.decode(errors="replace").splitlines()
    for number in (1, 12, 500):
        loops.stale(lines, number, ("lock", "self"))


def _one_line(data: bytes) -> None:
    line = data.decode(errors="replace")
    source_lines.called_in(line)
    source_lines.name_in(line, "f")


PYTHON = (
    Parser("python.py-spy", _dump, _given(DUMP), (CollectorError,)),
    Parser("python.py-spy-errors", _text(lambda text: pyspy.explain(text, 1)), _given(b"Error: Permission Denied\n")),
    Parser("python.redact", _text(lambda text: python.redact("value", text), "replace"), _given(b"'amqp://u:p@h/' Bearer abc password=x", b"x" * 300)),
    Parser("python.lines-3.9", _line((3, 9)), lambda: (bytes([0, 1, 4, 1, 8, 255]),)),
    Parser("python.lines-3.10", _line((3, 10)), lambda: (bytes([4, 0, 6, 1, 8, 128, 2, 255]),)),
    Parser("python.lines-3.11", _line((3, 11)), lambda: (_code().co_linetable,)),
    Parser("python.exceptions", _exceptions, lambda: (getattr(_code(), "co_exceptiontable", b"\x84\x02\x10\x01"),)),
    Parser("python.settings", lambda data: settings_files.parse(data, _WANTED), _given(SOURCE)),
    Parser("python.gunicorn-config", lambda data: gunicorn_config.assignments(data, _WANTED), _given(SOURCE)),
    Parser("python.acquires", _acquires, _given(SOURCE)),
    Parser("python.loops", _loops, _given(SOURCE)),
    Parser("python.line", _one_line, _given(b"    with self.lock, other(1): result = [f(x) for x in y]  # f()")),
    Parser("python.packages", lambda data: packages.from_names(tuple(data.decode(errors="replace").split("\n"))), _given(b"celery-5.3.1.dist-info\nkombu-5.3-py3.11.egg-info\nA_b.c-1.0-py3.9-linux.egg-info")),
)  # fmt: skip

# Native code: ELF, DWARF, symbols. The memory is a copy of the interpreter's own files.


@functools.cache
def _elf() -> bytes:
    return Path(os.path.realpath(sys.executable)).read_bytes()[: 1 << 16]


def _module(data: bytes) -> None:
    """A file at 0x10000, all of it in one region."""
    base = 0x10000

    def read_some(pid: int, address: int, length: int) -> bytes:
        if not 0 <= length <= memory.MAX_BYTES:
            raise ValueError(f"{length} bytes in one read")
        if not base <= address < base + len(data):
            raise OSError(14, "Bad address")
        return data[address - base : address - base + length]

    def read(pid: int, address: int, length: int) -> bytes:
        found = read_some(pid, address, length)
        if len(found) != length:
            raise OSError(14, "Bad address")
        return found

    kept = memory.read, memory.read_some
    memory.read, memory.read_some = read, read_some
    try:
        module = elf.read(1, regions.Region(base, base + len(data), "r-xp", 0, 1, "/bin/x"))
        if module is not None:
            module.symbol("PyEval_EvalFrame")
            module.exported(base + 0x1000)
            if module.unwind_header:
                cfi.Table(module, lambda address, length: read(1, address, length)).find(base + 0x2000)
    finally:
        memory.read, memory.read_some = kept


def _symbols(data: bytes) -> None:
    with _file(data) as path, open(path, "rb") as file:
        found = symbols.parse(file.fileno(), data[:64])
        if found is not None:
            found.name(0x1000)


@functools.cache
def _object_file() -> bytes:
    """A small one with a full symbol table."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.s").write_text(".globl f\n.type f,@function\nf: ret\n.size f,1\ng: ret\n")
        import subprocess

        subprocess.run(["cc", "-c", "a.s", "-o", "a.o"], cwd=folder, check=True)
        return Path(folder, "a.o").read_bytes()


def _unwinding(data: bytes) -> None:
    """The first half is a CIE's body, the rest an FDE's instructions."""
    middle = len(data) // 2
    common = cfi._parse_common(dwarf_bytes.Bytes(data[:middle], 0x1000))
    cfi._run(dwarf_bytes.Bytes(data[middle:], 0x2000), common, cfi.Row(), 0x3000, 0x3010)


NATIVE_ERRORS: Errors = (OSError, struct.error, dwarf_bytes.Malformed)
NATIVE = (
    Parser("native.elf", _module, lambda: (_elf(),), NATIVE_ERRORS),
    Parser("native.symbols", _symbols, lambda: (_object_file(),), (OSError, struct.error)),
    Parser("native.unwinding", _unwinding, _given(
        b"\x01zR\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01" + b"\x41\x0e\x10\x86\x02\x43\x0d\x06\x0a\x0b\x0f\x03\x77\x08\x06\x10\x05\x02\x77\x10", b"\x01zPLR\0\x01\x78\x10\x07\x9b\1\2\3\4\x1b\x1b\x0c\x07\x08" + bytes(20)), NATIVE_ERRORS),
    Parser("native.expression", lambda data: dwarf_expressions.evaluate(data, {7: 0x7000, 16: 0x400}, lambda address: address), _given(
        b"\x77\x08\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22", b"\x32\x12\x06\x23\x10\x0a\xff\xff\x1e"), (dwarf_bytes.Malformed, OSError, KeyError)),
)  # fmt: skip

# What was written here before, and may come back changed


@functools.cache
def _records() -> tuple[bytes, ...]:
    """An examination of a hung process, and one with an incident."""
    from tests.unit.snapshots import diagnosed, snapshot, tcp, thread

    seen = snapshot(
        thread(100, "recvfrom", fd=7, blocked_s=35),
        stacks={100: ["read_frame amqp/transport.py:294", "<module> /app/main.py:3"]},
        sockets=[tcp(7, unacked=1, backoff=6)],
    )
    said = recording.said(diagnosed(seen).verdict)
    incident = recording.of_incident(incidents.WorkerAborted(77, 1700000000.0, 30.0, 31.5))
    return tuple(
        journal.pack(recording.examination(recording.Examination(seen, Budgets(), said, incident=of)))
        for of in (None, incident)
    )


def _replay_one(record: dict[str, Any]) -> None:
    """As `replay` does it."""
    with mock.patch.object(replay, "complain"):
        inspection = replay.again(recording.read_examination(record))
    built = report.build(inspection)
    json.dumps(built)
    text.render(built, verbose=True, width=100)


def _journal(data: bytes) -> None:
    with _file(data) as path:
        for record in journal.read(path, lambda _: None):
            if record.get("record") == recording.EXAMINATION:
                _replay_one(record)


@functools.cache
def _journal_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.journal")
        journal.write(
            path, [journal.pack({"kind": "header", "alert": {"id": "x"}, "deep": [[[{"a": 1}]]]}), *_records()]
        )
        return path.read_bytes()


def _spool(data: bytes) -> None:
    with _file(data, f"{1:020}.item") as path:
        box = spool.Spool(path.parent)
        sink.unpack(box.read(1))


def _spooled() -> bytes:
    import zlib

    data = sink.pack(sink.Item({"id": "x", "type": "opened", "time": 1.0}, ({"time": 1, "message": "m"},)))
    return spool.MAGIC + struct.pack("<I", zlib.crc32(data)) + data


def _examination(data: bytes) -> None:
    _replay_one(journal.unpack(data))


def _alert_line() -> bytes:
    with mock.patch.object(replay, "complain"):
        built = report.build(replay.again(recording.read_examination(journal.unpack(_records()[1]))))
    told = alerts.Alerts("node")
    told.observe(alerts.Observed(alerts.Member(100, 5), 1.0, built))
    return json.dumps(told.tick(10.0)[0]).encode()


def _alerts(data: bytes) -> None:
    with _file(data) as path:
        list(recorded_timeouts.from_alerts(str(path), lambda _: None))


KEPT = (
    Parser("kept.journal", _journal, lambda: (_journal_file(),), (JournalError, facts_codec.DecodeError)),
    Parser("kept.record", journal.unpack, _records, (ValueError,)),
    Parser("kept.examination", _examination, _records, (ValueError, JournalError)),
    Parser("kept.alerts", _alerts, lambda: (_alert_line(),), (CannotInspect,)),
    Parser("kept.spool", _spool, lambda: (_spooled(),), (spool.Torn, ValueError, OSError)),
    Parser("kept.item", sink.unpack, lambda: (sink.pack(sink.Item({"id": "x"}, ())),), (ValueError,)),
)  # fmt: skip

# What users and other programs write

TOML = b"""[agent]
match = "gunicorn"
interval = "2s"
stuck_after = 30
memory_budget = "256MB"
[sentry]
dsn = "https://k@h/1"
[otlp]
endpoint = "http://127.0.0.1:4318"
headers = { a = "b" }
[spool]
dir = "/var/spool/x"
bytes = 64_000_000
"""


ENVIRONMENT = (
    b"STUCKTRACE_MATCH=gunicorn\0STUCKTRACE_INTERVAL=2s\0STUCKTRACE_METRICS_LISTEN=127.0.0.1:9464\0"
    b"STUCKTRACE_SENTRY_DSN=https://k@h/1\0STUCKTRACE_MEMORY_BUDGET=64MB\0STUCKTRACE_OTLP_HEADERS=a=b,c=d\0"
)


def _agent_toml(data: bytes) -> None:
    with _file(data, "agent.toml") as path:
        settings.describe(settings.load(path, {}, {}))


def _from_environment(data: bytes) -> None:
    settings.load(None, procfs.parse_environ(data.decode(errors="surrogateescape")), {})


def _rabbitmq(data: bytes) -> None:
    with _file(data, "rabbit.log") as path:
        rabbitmq_log.read([str(path)], 0.0, lambda _: True, lambda _: None)


RABBIT_LOG = b"""2024-05-01 10:00:00.123 [info] <0.684.0> accepting AMQP connection <0.684.0> (10.0.0.1:40000 -> 10.0.0.2:5672)
2024-05-01 10:00:10.000 [error] <0.684.0> closing AMQP connection <0.684.0> (10.0.0.1:40000 -> 10.0.0.2:5672):
missed heartbeats from client, timeout: 60s
2024-05-01 10:00:11.000000+00:00 [warning] <0.1.0> memory resource limit alarm set on node rabbit@a.
{"time":"2024-05-01T10:00:12Z","level":"info","msg":"closing AMQP connection <0.7.0> (1.1.1.1:1 -> 2.2.2.2:2, vhost: '/')","pid":"<0.7.0>"}
=ERROR REPORT==== 1-May-2024::10:00:13 ===
Error on AMQP connection <0.9.0> (1.1.1.1:5 -> 2.2.2.2:2, state: running):
"""
ROWS = json.dumps([{"pid": "<a.1.0>", "name": "1.1.1.1:1 -> 2.2.2.2:5672", "peer_host": [10, 0, 0, 1], "peer_port": 40000, "vhost": "/", "user": "u",
    "state": "running", "client_properties": [["product", "longstr", "py-amqp"], ["pid", "signedint", 7]], "number": 1, "consumer_count": 1,
    "prefetch_count": 4, "messages_ready": 1, "connection": "<a.1.0>"}]).encode()  # fmt: skip
API = json.dumps([{"name": "c", "peer_host": "::ffff:10.0.0.1", "peer_port": 4, "client_properties": {"product": "x", "pid": "12"}, "number": 1,
    "connection_details": {"name": "c"}, "idle_since": "2024-05-01T10:00:00.000+00:00", "channel_details": {"connection_name": "c", "number": 1},
    "queue": {"name": "q", "vhost": "/"}, "messages_ready": 3, "prefetch_count": 0}]).encode()  # fmt: skip


JSON_LOG = b'{"time":"2024-05-01T10:00:12Z","level":"info","msg":"closing AMQP connection <0.7.0> (1.1.1.1:1 -> 2.2.2.2:2, vhost: x)","pid":"<0.7.0>"}'


def _json_rows(data: bytes) -> list[dict[str, Any]]:
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _rabbitmqctl(data: bytes) -> None:
    for row in _json_rows(data):
        broker_view_found._connection(row)
        broker_view_found._channel(row, {str(row.get("connection")): "c"})
        broker_view_found._queue(row, "/")


def _management(data: bytes) -> None:
    for row in _json_rows(data):
        broker_view_management._connection(row)
        broker_view_management._channel(row)
        broker_view_management._consumer(row)
        broker_view_management._queue(row)


def _resp(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(1.0)
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            theirs.send(data[:60_000])
        theirs.shutdown(socket.SHUT_WR)
        resp.Resp(ours).ask("PING")


def _pods(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    list(pod_list.parse(document))


PODS = json.dumps({"kind": "PodList", "items": [{"metadata": {"name": "a", "namespace": "b", "uid": "c", "annotations": {"kubernetes.io/config.mirror": "d"}},
    "status": {"containerStatuses": [{"name": "web", "containerID": "containerd://" + "ab" * 32}]}}]}).encode()  # fmt: skip
WRITTEN = (
    Parser("written.agent-toml", _agent_toml, _given(TOML), (InvalidSettings,)),
    Parser("written.environment", _from_environment, _given(ENVIRONMENT), (InvalidSettings,)),
    Parser("written.broker-url", _text(broker_urls.parse), _given(b"amqp://u:p%40@host:5672/vhost", b"redis://[::1]:6379/0"), (UsageError,)),
    Parser("written.rabbitmq-log", _rabbitmq, _given(RABBIT_LOG), (CannotInspect,)),
    Parser("written.rabbitmqctl", _rabbitmqctl, _given(ROWS)),
    Parser("written.management", _management, _given(API)),
    Parser("written.pods", _pods, _given(PODS), (ValueError,)),
    Parser("written.resp", _resp, _given(b"*2\r\n$3\r\nfoo\r\n:12\r\n", b"$-1\r\n", b"*1\r\n*1\r\n*0\r\n"), (resp.RespError, OSError, ValueError)),
    Parser("written.rabbitmq-json", _rabbitmq, _given(JSON_LOG)),
    Parser("written.redis-clients", _text(broker_view_redis.connection, "replace"), _given(b"id=3 addr=10.0.0.5:40000 laddr=1 name= age=1 idle=12 flags=b db=0 cmd=brpop user=default lib-name=redis-py")),
    Parser("written.sentry-limits", lambda data: sentry._limit_s(data.decode("latin-1")), _given(b"60:error;transaction:key, 2700::organization")),
    Parser("written.sentry-detail", lambda data: sentry._detail(None, data), _given(b'{"detail": "no such project"}')),
    Parser("written.retry-after", _text(retry_after.seconds), _given(b"120", b"Wed, 21 Oct 2015 07:28:00 GMT")),
)  # fmt: skip

# Packets


@functools.cache
def _talk() -> bytes:
    from tests.unit.amqp_talks import confirmed, deliver, handshake, heartbeat

    writes = [*handshake(), *confirmed(3), (False, deliver(1, 1, b"body")), (True, heartbeat())]
    return b"".join(data for _, data in writes)


def _frames(data: bytes) -> None:
    for start in (0, 7):
        conversations = Conversations()
        for at in range(0, len(data), 400):
            for ends in (("10.0.0.1:1", "10.0.0.2:5672"), ("10.0.0.2:5672", "10.0.0.1:1")):
                piece = data[at + start : at + 400]
                conversations.feed(packets.Segment(1.0 + at / 1000, *ends, at, packets.ACK, piece, len(piece)))
        conversations.settle(100.0)
        conversations.facts(100.0)


def _redacted(data: bytes) -> None:
    """The bytes as segments of a connection; what comes out must not be longer than what went in."""
    redaction = Redaction()
    for at in range(0, len(data), 300):
        piece = data[at : at + 300]
        packet = _packet()[:40] + piece
        for ends in (("10.0.0.1:1", "10.0.0.2:5672"), ("10.0.0.2:5672", "10.0.0.1:1")):
            redaction.feed(packet, packets.Segment(1.0, *ends, at, packets.ACK, piece, len(piece), at))


def _capture_file(data: bytes) -> None:
    for link, at, packet, size in packet_file.read(io.BytesIO(data)):
        packets.segment(link, packet, at, size)


@functools.cache
def _packet() -> bytes:
    tcp = struct.pack(">HHIIBBHHH", 40000, 5672, 1, 2, 5 << 4, 24, 1000, 0, 0) + b"\x08\0\0\0\0\0\0\xce"
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2") + tcp


@functools.cache
def _pcap() -> tuple[bytes, ...]:
    head = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 101)
    record = struct.pack("=IIII", 1, 2, len(_packet()), len(_packet())) + _packet()
    section = struct.pack("=IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    interface = struct.pack("=IIHHII", 1, 20, 101, 0, 0, 20)
    size = 32 + (len(_packet()) + 3) // 4 * 4
    block = (
        struct.pack("=IIIIIII", 6, size, 0, 0, 5, len(_packet()), len(_packet()))
        + _packet()
        + bytes(-len(_packet()) % 4)
    )
    return head + record * 2, section + interface + block + struct.pack("=I", size)


def _packet_of_any_link(data: bytes) -> None:
    for link in (1, 101, 113, 276, 0, 12, 228):
        packets.segment(link, data, 1.0)


PACKETS = (
    Parser("packets.amqp", _frames, lambda: (_talk(),)),
    Parser("packets.redaction", _redacted, lambda: (_talk(),)),
    Parser("packets.amqp-table", lambda data: amqp_tables.read_table(data), lambda: (amqp_tables.pack_table({"a": 1, "b": [b"x", None, {"c": 2.5}]}),), (amqp_tables.Malformed,)),
    Parser("packets.amqp-method", amqp_layer.arguments, lambda: (_talk()[15:200], b"\0\x0a\0\x0a\0\x09")),
    Parser("packets.amqp-secrets", amqp_methods.without_secrets, lambda: (_talk()[15:200],)),
    Parser("packets.packet", _packet_of_any_link, lambda: (_packet(), bytes(12) + b"\x08\0" + _packet())),
    Parser("packets.file", _capture_file, _pcap, (ValueError,)),
)  # fmt: skip

PARSERS = (*PROC, *NETLINK, *PYTHON, *NATIVE, *KEPT, *WRITTEN, *PACKETS)
"""Also foreign, and fuzzed by changing what a whole inspection reads: objects in a target's memory (corruption.py)."""


def check(parser: Parser, data: bytes) -> None:
    """Raises what the parser must not."""
    with contextlib.suppress(*parser.raises):
        parser.parse(data)
