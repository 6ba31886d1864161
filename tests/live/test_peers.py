"""Who is at the other end of a connection on this node: the same answer from both engines."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from stucktrace.collectors import kernel
from stucktrace.facts import Peer

from tests.harness import kernel as shown
from tests.harness.kernel import wait_until
from tests.harness.namespaces import pair
from tests.harness.scripts import running
from tests.live.test_sockets import in_netns, look

SERVER = """
import json, socket, sys
listener = socket.create_server((ADDRESS, PORT))
print(json.dumps({"port": listener.getsockname()[1], "listener": listener.fileno()}), flush=True)
kept = []
for line in sys.stdin:
    if line.startswith("accept"):
        kept.append(listener.accept()[0]); print(kept[-1].fileno(), flush=True)
    else:
        kept[-1].recv(int(line)); print("read", flush=True)
"""
CLIENT = """
import json, socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", SOURCE))
s.settimeout(60)
s.connect((ADDRESS, PORT))
s.settimeout(None)
print(json.dumps({"fd": s.fileno()}), flush=True)
for line in sys.stdin:
    s.sendall(b"x" * int(line)); print("sent", flush=True)
"""


def server(address: str = "127.0.0.1", port: int = 0) -> str:
    return SERVER.replace("ADDRESS", repr(address)).replace("PORT", str(port))


def client(address: str, port: int, source: int = 0) -> str:
    return CLIENT.replace("ADDRESS", repr(address)).replace("PORT", str(port)).replace("SOURCE", str(source))


@pytest.fixture(params=["core", "none"])
def engine(request):
    with_kernel = kernel.open_kernel(request.param).kernel
    yield with_kernel
    if with_kernel is not None:
        with_kernel.close()


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def peer_of(pid: int, fd: int, engine: kernel.Kernel | None) -> Peer | None:
    return look(pid, engine, fd)[fd].peer


def test_who_holds_it_and_what_it_has_not_read(engine):
    with running(server()) as there, running(client("127.0.0.1", there.says["port"])) as here:
        fd = here.says["fd"]
        accepted = int(there.tell("accept"))
        assert here.tell("563") == "sent"
        shown.wait_for_call(there.pid, "read")
        peer = peer_of(here.pid, fd, engine)
        assert peer == Peer(
            pids=(there.pid,), command=command(there.pid), state="ESTABLISHED", unread_bytes=563, holder_state="S",
            inode=shown.socket_inode(there.pid, accepted),
        )  # fmt: skip
        assert there.tell("63") == "read"
        assert peer_of(here.pid, fd, engine).unread_bytes == 500
        # And the other way round.
        back = peer_of(there.pid, accepted, engine)
        assert (back.pids, back.unread_bytes) == ((here.pid,), 0)


def test_a_stopped_holder(engine):
    with running(server()) as there, running(client("127.0.0.1", there.says["port"])) as here:
        there.tell("accept")
        os.kill(there.pid, signal.SIGSTOP)
        shown.wait_for_state(there.pid, "T")
        assert peer_of(here.pid, here.says["fd"], engine).holder_state == "T"


def test_in_another_network_namespace(engine):
    with (
        pair() as hosts,
        running(server(hosts.there_address, 5672), *in_netns(hosts.there)) as there,
        running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as here,
    ):
        there.tell("accept")
        here.tell("14")
        peer = peer_of(here.pid, here.says["fd"], engine)
        assert (peer.pids, peer.state, peer.unread_bytes) == ((there.pid,), "ESTABLISHED", 14)


def test_loopback_is_another_host_in_every_namespace(engine):
    """The same four numbers in two namespaces: each connection finds its own other end."""
    with pair() as hosts:
        source = 41234
        with (
            running(server(port=5672), *in_netns(hosts.here)) as first,
            running(server(port=5672), *in_netns(hosts.there)) as second,
            running(client("127.0.0.1", 5672, source), *in_netns(hosts.here)) as near,
            running(client("127.0.0.1", 5672, source), *in_netns(hosts.there)) as far,
        ):
            first.tell("accept")
            second.tell("accept")
            assert peer_of(near.pid, near.says["fd"], engine).pids == (first.pid,)
            assert peer_of(far.pid, far.says["fd"], engine).pids == (second.pid,)


def test_behind_nat_there_is_no_answer(engine):
    with pair() as hosts:
        for rule in (
            "add table ip nat",
            "add chain ip nat out { type nat hook output priority -100; }",
            f"add rule ip nat out ip daddr 192.0.2.7 dnat to {hosts.there_address}",
        ):
            in_here("nft", rule, hosts.here)
        in_here("ip", "route add default via " + hosts.there_address, hosts.here)
        with (
            running(server(hosts.there_address, 5672), *in_netns(hosts.there)) as there,
            running(client("192.0.2.7", 5672), *in_netns(hosts.here)) as here,
        ):
            there.tell("accept")
            fact = look(here.pid, engine, here.says["fd"])[here.says["fd"]]
            assert (fact.state, fact.remote, fact.peer) == ("ESTABLISHED", "192.0.2.7:5672", None)


def in_here(program: str, arguments: str, netns: str) -> None:
    words = [arguments] if program == "nft" else arguments.split()
    subprocess.run(["ip", "netns", "exec", netns, program, *words], check=True)


def test_nobody_accepted_it(engine):
    with running(server()) as there, running(client("127.0.0.1", there.says["port"])) as here:
        assert here.tell("100") == "sent"
        wait_until(lambda: peer_of(here.pid, here.says["fd"], engine).unread_bytes == 100, "the bytes are there")
        peer = peer_of(here.pid, here.says["fd"], engine)
        assert (peer.pids, peer.inode, peer.in_accept_queue) == ((), None, True)
        assert (peer.listener_pids, peer.command) == ((there.pid,), command(there.pid))
        assert peer.state == "ESTABLISHED"


def test_in_the_own_accept_queue(engine):
    source = """
import json, socket, sys
l = socket.create_server(("127.0.0.1", 0)); s = socket.create_connection(l.getsockname()); s.send(b"GET /")
print(json.dumps({"fd": s.fileno()}), flush=True)
s.recv(1)
"""
    with running(source) as target:
        peer = peer_of(target.pid, target.says["fd"], engine)
        assert (peer.in_accept_queue, peer.listener_pids) == (True, (target.pid,))


def test_the_other_end_was_closed(engine):
    source = """
import json, socket, sys
l = socket.create_server(("127.0.0.1", 0)); s = socket.create_connection(l.getsockname()); l.accept()[0].close()
print(json.dumps({"fd": s.fileno()}), flush=True)
sys.stdin.read()
"""
    with running(source) as target:
        fd = target.says["fd"]
        wait_until(lambda: look(target.pid, engine, fd)[fd].state == "CLOSE_WAIT", "the FIN")
        peer = peer_of(target.pid, fd, engine)
        # In FIN_WAIT2 without a holder: closed, not unaccepted.
        assert peer is None or (peer.pids, peer.in_accept_queue) == ((), False)


UNIX_SERVER = """
import json, os, socket, sys, tempfile
path = tempfile.mktemp()
listener = socket.socket(socket.AF_UNIX); listener.bind(path); listener.listen(5)
print(json.dumps({"path": path}), flush=True)
kept = []
for line in sys.stdin:
    if line.startswith("accept"): kept.append(listener.accept()[0])
    else: kept[-1].recv(int(line))
    print("done", flush=True)
"""
UNIX_CLIENT = """
import json, os, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(PATH)
s.send(b"x" * 77)
print(json.dumps({"fd": s.fileno()}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("apart", [False, True], ids=["same namespace", "another namespace"])
def test_unix_socket(engine, apart):
    """As PostgreSQL, docker.sock and gunicorn on a path; the path may reach into another network namespace."""
    with pair() as hosts:
        prefix = in_netns(hosts.there) if apart else ()
        with running(UNIX_SERVER, *prefix) as there:
            path = there.says["path"]
            with running(UNIX_CLIENT.replace("PATH", repr(path))) as here:
                fd = here.says["fd"]
                fact = look(here.pid, engine, fd)[fd]
                assert (fact.remote, fact.direction) == (path, "out")
                assert (fact.peer.in_accept_queue, fact.peer.pids, fact.peer.listener_pids) == (True, (), (there.pid,))
                assert there.tell("accept") == "done"
                fact = look(here.pid, engine, fd)[fd]
                assert (fact.remote, fact.peer.state) == (path, "CONNECTED")
                assert (fact.peer.pids, fact.peer.command, fact.peer.unread_bytes) == (
                    (there.pid,),
                    command(there.pid),
                    77,
                )
                assert not fact.peer.in_accept_queue
                assert there.tell("70") == "done"
                assert look(here.pid, engine, fd)[fd].peer.unread_bytes == 7
            os.unlink(path)
