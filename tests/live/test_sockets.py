"""Sockets of another process: the same facts from both engines, and the same as `ss` shows."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from stucktrace.collectors import holders, kernel, socket_tables, sockets
from stucktrace.facts import Keepalive, SocketFact

from tests.harness import kernel as shown
from tests.harness.kernel import wait_until
from tests.harness.namespaces import pair
from tests.harness.scripts import running

KINDS = """
import json, os, socket, sys, tempfile
S = socket
fds = {}
def keep(name, s):
    fds[name] = s.fileno(); kept.append(s); return s
kept = []
listener = keep("listener", S.create_server(("127.0.0.1", 0)))
out = keep("out", S.create_connection(listener.getsockname()))
accepted = keep("in", listener.accept()[0])
waiting = keep("unaccepted", S.create_connection(listener.getsockname()))
dual = keep("dual", S.create_server(("::", 0), family=S.AF_INET6, dualstack_ipv6=True))
mapped = keep("mapped-out", S.create_connection(("127.0.0.1", dual.getsockname()[1])))
keep("mapped-in", dual.accept()[0])
six = keep("six-out", S.create_connection(("::1", dual.getsockname()[1])))
keep("six-in", dual.accept()[0])
mapped.send(b"unread")
tuned = keep("tuned", S.create_connection(listener.getsockname()))
for level, name, value in ((S.SOL_SOCKET, S.SO_KEEPALIVE, 1), (6, S.TCP_KEEPIDLE, 60), (6, S.TCP_KEEPINTVL, 11), (6, S.TCP_KEEPCNT, 4),
                           (6, S.TCP_USER_TIMEOUT, 1500), (6, S.TCP_SYNCNT, 3)):
    tuned.setsockopt(level, name, value)
left, right = S.socketpair()
keep("left", left); keep("right", right); left.send(b"seven77")
path = tempfile.mktemp()
ul = keep("unix-listener", S.socket(S.AF_UNIX)); ul.bind(path); ul.listen(5)
uc = keep("unix-out", S.socket(S.AF_UNIX)); uc.connect(path); keep("unix-in", ul.accept()[0]); os.unlink(path)
dl, dr = S.socketpair(S.AF_UNIX, S.SOCK_DGRAM)
keep("dgram-left", dl); keep("dgram-right", dr); dl.send(b"abc"); dl.send(b"defgh")
keep("udp", S.socket(S.AF_INET, S.SOCK_DGRAM)).connect(("127.0.0.1", 9))
keep("udp6", S.socket(S.AF_INET6, S.SOCK_DGRAM)).bind(("::1", 0))
keep("unbound", S.socket())
keep("netlink", S.socket(S.AF_NETLINK, S.SOCK_RAW, 0))
fds["dup"] = os.dup(out.fileno())
print(json.dumps({"fds": fds, "path": path}), flush=True)
sys.stdin.read()
"""


@dataclass
class Files:
    """The fd table of a process, as the open files collector gives it."""

    pid: int

    def sockets(self) -> Mapping[int, tuple[int, ...]]:
        return holders.sockets_of(self.pid)


@pytest.fixture(params=["core", "none"])
def engine(request):
    with_kernel = kernel.open_kernel(request.param).kernel
    yield with_kernel
    if with_kernel is not None:
        with_kernel.close()


def look(pid: int, engine: kernel.Kernel | None, *details: int) -> dict[int, SocketFact]:
    """fd -> fact. Without named fds all of them are looked at in detail."""
    files = Files(pid)
    wanted = details or tuple(fd for fds in files.sockets().values() for fd in fds)
    found = sockets.collect((pid,), {pid: files}, engine, {pid: wanted})
    assert found.missing == ()
    return {fd: fact for fact in found[pid] for fd in fact.fds}


def test_every_kind(engine):
    with running(KINDS) as target:
        fds, path = target.says["fds"], target.says["path"]
        facts = look(target.pid, engine)
        by = {name: facts[fd] for name, fd in fds.items()}

        assert (by["listener"].state, by["listener"].receive_bytes, by["listener"].backlog) == ("LISTEN", 2, 128)
        assert by["listener"].remote == by["listener"].direction == ""
        assert by["out"].fds == (fds["out"], fds["dup"])
        assert (by["out"].state, by["out"].protocol, by["out"].family) == ("ESTABLISHED", "tcp", "inet")
        assert (by["out"].local, by["out"].remote) == (by["in"].remote, by["in"].local)
        assert by["out"].remote == by["listener"].local
        assert (by["dual"].family, by["dual"].local.rpartition(":")[0]) == ("inet6", "[::]")
        assert by["mapped-in"].local.startswith("127.0.0.1:")
        assert (by["mapped-in"].local, by["mapped-in"].remote) == (by["mapped-out"].remote, by["mapped-out"].local)
        assert by["six-in"].local.startswith("[::1]:")
        assert (by["mapped-in"].receive_bytes, by["mapped-in"].bytes_received) == (6, 6)
        assert by["mapped-out"].bytes_sent == 6
        assert by["left"].protocol == "unix-stream"
        assert (by["left"].state, by["left"].direction, by["right"].receive_bytes) == ("ESTABLISHED", "", 7)
        assert by["left"].peer.unread_bytes == 7
        assert (by["unix-listener"].state, by["unix-listener"].local) == ("LISTEN", path)
        assert (by["unix-out"].remote, by["unix-out"].direction) == (path, "out")
        assert (by["unix-in"].local, by["unix-in"].direction) == (path, "in")
        assert by["dgram-right"].protocol == "unix-dgram"
        assert by["dgram-right"].receive_bytes == 3
        assert (by["udp"].protocol, by["udp"].remote, by["udp6"].family) == ("udp", "127.0.0.1:9", "inet6")
        assert by["udp6"].local.startswith("[::1]:")
        assert (by["unbound"].protocol, by["unbound"].state) == ("tcp", "CLOSE")
        assert by["netlink"].protocol == "netlink"
        assert [by[name].direction for name in ("out", "in", "mapped-in", "six-out", "unaccepted")] == [
            "out", "in", "in", "out", "out",
        ]  # fmt: skip
        assert by["tuned"].keepalive == Keepalive(True, 60, 11, 4, 0)
        assert (by["tuned"].user_timeout_s, by["tuned"].syn_retries) == (1.5, 3)
        assert by["tuned"].timer == "keepalive"
        assert 0 < by["tuned"].timer_expires_s <= 60
        defaults = {name: int(Path(f"/proc/sys/net/ipv4/tcp_{name}").read_text()) for name in DEFAULTS}
        assert by["out"].keepalive == Keepalive(
            False, defaults["keepalive_time"], defaults["keepalive_intvl"], defaults["keepalive_probes"], 0
        )
        assert by["out"].retries2 == defaults["retries2"]
        assert by["out"].syn_retries == defaults["syn_retries"]


DEFAULTS = ("keepalive_time", "keepalive_intvl", "keepalive_probes", "retries2", "syn_retries")
MOVING = ("last_send_s", "last_receive_s", "last_ack_s", "timer_expires_s")
"""What differs between two looks at an idle socket."""
BPF_ONLY = ("delayed_ack_pending",)


def test_both_engines_tell_the_same(core):
    with running(KINDS) as target:
        # The last ACKs are through and the kernel has settled its timers when nothing differs between two looks.
        wait_until(lambda: plain(look(target.pid, core)) == plain(look(target.pid, core)), "an idle target")
        ours, theirs = look(target.pid, core), look(target.pid, None)
        assert plain(ours) == plain(theirs)
        for fd, fact in ours.items():
            for name in MOVING:
                mine, other = getattr(fact, name), getattr(theirs[fd], name)
                assert (mine is None) == (other is None), (fact, name)
                if mine is not None:
                    assert abs(mine - other) < 5, (fact, name, other)


def plain(facts: dict[int, SocketFact]) -> dict[int, dict[str, object]]:
    found = {}
    for fd, fact in facts.items():
        fields = dataclasses.asdict(fact)
        for name in (*MOVING, *BPF_ONLY):
            fields.pop(name)
        # An unbound socket has no queues in the tables, because it is in no table.
        if fact.state == "CLOSE":
            fields = {name: fields[name] for name in ("inode", "fds", "protocol", "state", "local", "remote")}
        if fields.get("peer"):
            # A process that waits for a line is asleep, or was caught just before.
            fields["peer"].pop("holder_state")
        found[fd] = fields
    return found


CLIENT = """
import json, socket, sys
address, port, *options = sys.argv[1:]
s = socket.create_connection((address, int(port)), timeout=60)
s.settimeout(None)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, {keepalive})
if {keepalive}:
    for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL): s.setsockopt(6, name, 1)
    s.setsockopt(6, socket.TCP_KEEPCNT, 100)
print(json.dumps({{"fd": s.fileno()}}), flush=True)
for line in sys.stdin:
    s.sendall(b"x" * int(line)); print("sent", flush=True)
"""
SERVER = """
import json, socket, sys
listener = socket.create_server(("0.0.0.0", 5672))
print(json.dumps({"fd": listener.fileno()}), flush=True)
kept = []
while True: kept.append(listener.accept()[0])
"""


def client(address: str, keepalive: int = 0) -> str:
    """The client's source with its arguments written in."""
    return f"import sys; sys.argv[1:] = [{address!r}, '5672']\n" + CLIENT.format(keepalive=keepalive)


def in_netns(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


def ss(netns: str, remote: str) -> str:
    (row,) = [row for row in shown.sockets(netns) if row["remote"] == remote]
    return row["rest"]


def figure(text: str, name: str) -> int:
    """0 where `ss` leaves it out."""
    found = re.search(rf"\b{name}:(?:\d+/)?(\d+)", text)
    return int(found.group(1)) if found else 0


def test_unacknowledged_data_and_backoff_as_ss_shows_them(engine):
    with (
        pair() as hosts,
        running(SERVER, *in_netns(hosts.there)),
        running(client(hosts.there_address), *in_netns(hosts.here)) as target,
    ):
        remote = f"{hosts.there_address}:5672"
        assert target.tell("100") == "sent"
        wait_until(lambda: not figure(ss(hosts.here, remote), "unacked"), "the ACK")
        hosts.cut(5672)
        assert target.tell("563") == "sent"
        wait_until(lambda: figure(ss(hosts.here, remote), "backoff") >= 3, "three retransmissions")

        fd = target.says["fd"]
        before = ss(hosts.here, remote)
        fact = look(target.pid, engine, fd)[fd]
        after = ss(hosts.here, remote)
        assert (fact.state, fact.direction, fact.remote) == ("ESTABLISHED", "out", remote)
        assert figure(before, "backoff") <= fact.backoff <= figure(after, "backoff")
        assert fact.unacked == figure(before, "unacked") == 1
        assert fact.send_bytes == 563
        assert fact.timer == "retransmit"
        assert fact.retransmits >= fact.backoff
        assert figure(before, "rto") / 1000 <= fact.rto_s * 1.001
        assert fact.rto_s <= figure(after, "rto") / 1000 + 0.001
        assert 0 <= fact.timer_expires_s <= fact.rto_s
        assert figure(before, "lastack") / 1000 - 0.1 <= fact.last_ack_s <= figure(after, "lastack") / 1000 + 0.1
        # The last segment sent is the last retransmission, so much younger than the outage.
        assert fact.last_send_s < fact.last_ack_s
        assert (fact.bytes_acked, fact.bytes_received) == (101, 0)
        assert fact.keepalive.on is False
        assert fact.user_timeout_s == 0
        hosts.heal()
        wait_until(lambda: look(target.pid, engine, fd)[fd].unacked == 0, "the path is back")
        assert look(target.pid, engine, fd)[fd].backoff == 0


def test_unanswered_keepalive_probes(engine):
    with (
        pair() as hosts,
        running(SERVER, *in_netns(hosts.there)),
        running(client(hosts.there_address, keepalive=1), *in_netns(hosts.here)) as target,
    ):
        fd = target.says["fd"]
        hosts.cut(5672)
        remote = f"{hosts.there_address}:5672"
        wait_until(lambda: re.search(r"timer:\(keepalive,[^,]+,[2-9]", ss(hosts.here, remote)), "probes")
        fact = look(target.pid, engine, fd)[fd]
        assert (fact.timer, fact.unacked, fact.send_bytes) == ("keepalive", 0, 0)
        assert (fact.keepalive.on, fact.keepalive.idle_s, fact.keepalive.interval_s, fact.keepalive.count) == (
            True,
            1,
            1,
            100,
        )
        assert 2 <= fact.keepalive.probes_unanswered <= 100
        # The probes are no data.
        assert fact.bytes_sent == 0


def test_closed_window(engine):
    source = """
import json, socket, sys
l = socket.create_server(("127.0.0.1", 0)); s = socket.create_connection(l.getsockname()); peer = l.accept()[0]
print(json.dumps({"fd": s.fileno()}), flush=True)
while True: s.sendall(b"x" * 65536)
"""
    with running(source) as target:
        fd = target.says["fd"]
        wait_until(lambda: look(target.pid, engine, fd)[fd].timer == "persist", "the persist timer")
        fact = look(target.pid, engine, fd)[fd]
        assert fact.send_bytes > 0
        assert fact.unacked == 0
        assert fact.peer.unread_bytes > 0
        assert fact.peer.pids == (target.pid,)


CONNECTING = """
import json, socket, sys
s = socket.socket(); s.setsockopt(6, socket.TCP_SYNCNT, 9)
print(json.dumps({"fd": s.fileno()}), flush=True)
s.connect(("ADDRESS", 5672))
"""


def test_unanswered_connect(engine):
    with pair() as hosts:
        hosts.cut()
        source = CONNECTING.replace("ADDRESS", hosts.there_address)
        with running(source, *in_netns(hosts.here)) as target:
            fd = target.says["fd"]
            wait_until(lambda: (look(target.pid, engine, fd)[fd].retransmits or 0) >= 2, "two SYNs")
            fact = look(target.pid, engine, fd)[fd]
            assert (fact.state, fact.direction, fact.syn_retries) == ("SYN_SENT", "out", 9)
            assert fact.timer == "retransmit"
            assert fact.last_ack_s is fact.last_receive_s is fact.last_send_s is None
            assert fact.peer is None


def test_half_closed_states(engine):
    source = """
import json, socket, sys
l = socket.create_server(("127.0.0.1", 0)); a = socket.create_connection(l.getsockname()); b = l.accept()[0]
a.shutdown(socket.SHUT_WR)
print(json.dumps({"a": a.fileno(), "b": b.fileno()}), flush=True)
sys.stdin.read()
"""
    with running(source) as target:

        def states() -> tuple[str, str]:
            facts = look(target.pid, engine)
            return facts[target.says["a"]].state, facts[target.says["b"]].state

        wait_until(lambda: states() == ("FIN_WAIT2", "CLOSE_WAIT"), "the FIN is acknowledged")


FORKING = """
import json, os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
a = socket.create_connection(listener.getsockname()); b = listener.accept()[0]
child = os.fork()
if child == 0:
    listener.close(); sys.stdin.read(); os._exit(0)
print(json.dumps({"child": child, "in": b.fileno(), "out": a.fileno()}), flush=True)
sys.stdin.read()
"""


def test_inherited_sockets_and_the_parents_listener(engine):
    with running(FORKING) as target:
        child = target.says["child"]
        wait_until(lambda: len(holders.sockets_of(child)) == 2, "the child's own table")
        for details in ((), (target.says["in"],)):
            facts = look(child, engine, *details) if details else look_without_details(child, engine)
            # The child holds no listener: it came in through its parent's.
            assert facts[target.says["in"]].direction == "in"
            assert facts[target.says["out"]].direction == "out"
            assert facts[target.says["in"]].shared_with == (target.pid,)
        os.kill(child, signal.SIGKILL)


def look_without_details(pid: int, engine: kernel.Kernel | None) -> dict[int, SocketFact]:
    return {fd: fact for fact in sockets.collect((pid,), {pid: Files(pid)}, engine)[pid] for fd in fact.fds}


def test_without_the_right_to_enter_a_namespace(core):
    """/proc/PID/net is the last resort: it says less, and says so."""
    with (
        pair() as hosts,
        running(SERVER, *in_netns(hosts.there)),
        running(client(hosts.there_address, keepalive=1), *in_netns(hosts.here)) as target,
    ):
        fd = target.says["fd"]
        code = f"""
from stucktrace.collectors import holders, sockets
class Files:
    def sockets(self): return holders.sockets_of({target.pid})
found = sockets.collect(({target.pid},), {{{target.pid}: Files()}}, None, {{{target.pid}: ({fd},)}})
fact = next(fact for fact in found[{target.pid}] if {fd} in fact.fds)
print(found.source, fact.state, fact.remote, fact.timer, fact.unacked, fact.keepalive.idle_s, [m.remedy for m in found.missing], sep="|")
"""
        done = subprocess.run(
            ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c", code],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        source, state, remote, timer, unacked, idle, remedies = done.stdout.strip().split("|")
        assert (source, state, remote) == ("/proc/net", "ESTABLISHED", f"{hosts.there_address}:5672")
        # What the table does not tell is asked of the suspect itself.
        assert (timer, unacked, idle) == ("keepalive", "0", "1")
        assert "CAP_SYS_ADMIN" in remedies


def test_a_process_that_is_gone(engine):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    found = sockets.collect((process.pid,), {process.pid: Files(process.pid)}, engine, {process.pid: (3,)})
    assert not found.get(process.pid)


def test_a_process_that_ends_meanwhile(engine):
    for _ in range(20):
        with running(KINDS) as target:
            files = Files(target.pid)
            details = tuple(target.says["fds"].values())
            table = files.sockets()
            target.process.kill()
            for _ in range(5):
                sockets.collect((target.pid,), {target.pid: _Frozen(table)}, engine, {target.pid: details})


@dataclass
class _Frozen:
    table: Mapping[int, tuple[int, ...]]

    def sockets(self) -> Mapping[int, tuple[int, ...]]:
        return self.table


MANY = """
import json, resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
kept = [socket.socketpair() for _ in range((min(most, 20000) - 1200) // 2)]
listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
for _ in range(500):
    kept.append((socket.create_connection(listener.getsockname()), listener.accept()[0]))
print(json.dumps({"fd": kept[-1][0].fileno()}), flush=True)
sys.stdin.read()
"""


def test_many_sockets_in_one_look(engine):
    with running(MANY) as target:
        files = _Frozen(holders.sockets_of(target.pid))
        began = time.process_time()
        found = sockets.collect((target.pid,), {target.pid: files}, engine, {target.pid: (target.says["fd"],)})
        spent = time.process_time() - began
        assert len(found[target.pid]) == len(files.table) > 10_000
        # Measured 0.2-0.5 s; the machine may be ten times slower, but it must not be quadratic.
        assert spent < 5


def test_socket_names_where_no_table_lists_them():
    with running(KINDS) as target:
        fds = target.says["fds"]
        named = {
            name: socket_tables.name_socket(target.pid, (fds[name],)) for name in ("unbound", "netlink", "udp6", "left")
        }
        assert {name: draft["protocol"] for name, draft in named.items()} == {
            "unbound": "tcp", "netlink": "netlink", "udp6": "udp", "left": "unix-stream",
        }  # fmt: skip
        assert socket_tables.name_socket(target.pid, (9999,))["protocol"] == "other"
