"""Events on sockets during a window: whose they are, how many, and nobody else's."""

from __future__ import annotations

import errno

import pytest
from stucktrace.collectors import tcp
from stucktrace.facts import TcpEvent

from tests.harness.kernel import wait_until
from tests.harness.namespaces import pair
from tests.harness.scripts import running
from tests.live.test_peers import client, server
from tests.live.test_sockets import in_netns


def of(watch: tcp.Watch, pid: int, kind: str) -> list[TcpEvent]:
    return [event for event in watch.events().get(pid, ()) if event.kind == kind]


def test_a_storm_is_one_event_with_a_count(core):
    with (
        pair() as hosts,
        running(server(hosts.there_address, 5672), *in_netns(hosts.there)) as there,
        running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as here,
        running(client(hosts.there_address, 5672), *in_netns(hosts.here)) as stranger,
    ):
        there.tell("accept")
        with tcp.watching((here.pid,), core) as watch:
            assert watch.missing == ()
            assert core.hooks["tcp"].startswith("tp_btf/")
            hosts.cut(5672)
            here.tell("100")
            stranger.tell("100")
            wait_until(lambda: sum(event.count for event in of(watch, here.pid, "retransmit")) >= 4, "retransmissions")
            (event,) = of(watch, here.pid, "retransmit")
            assert event.remote == f"{hosts.there_address}:5672"
            assert event.local.startswith(f"{hosts.here_address}:")
            assert event.inode is not None
            assert set(watch.events()) == {here.pid}
        assert core.lost_records() == 0


def test_a_reset_and_what_it_does(core):
    source = """
import json, socket, struct, sys
l = socket.create_server(("127.0.0.1", 0)); s = socket.create_connection(l.getsockname()); other = l.accept()[0]
print(json.dumps({"fd": s.fileno()}), flush=True)
for line in sys.stdin:
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); other.close(); print("closed", flush=True)
"""
    with running(source) as target, tcp.watching((target.pid,), core) as watch:
        assert target.tell("reset") == "closed"
        wait_until(lambda: of(watch, target.pid, "reset-received"), "the reset")
        (event,) = of(watch, target.pid, "reset-received")
        assert event.count == 1
        errors = [error for error in of(watch, target.pid, "error") if error.inode == event.inode]
        assert [(error.error, error.count) for error in errors] == [(errno.ECONNRESET, 1)]
        assert "CLOSE" in {change.new_state for change in of(watch, target.pid, "state") if change.inode == event.inode}


def test_a_connection_that_begins_in_the_window(core):
    source = """
import json, socket, sys
closed = socket.socket(); closed.bind(("127.0.0.1", 0))
print(json.dumps({"port": closed.getsockname()[1]}), flush=True)
for line in sys.stdin:
    for _ in range(3):
        with socket.socket() as s:
            try: s.connect(("127.0.0.1", closed.getsockname()[1]))
            except ConnectionRefusedError: pass
    print("refused", flush=True)
"""
    with running(source) as target, tcp.watching((target.pid,), core) as watch:
        assert target.tell("connect") == "refused"
        remote = f"127.0.0.1:{target.says['port']}"
        states = [event for event in of(watch, target.pid, "state") if event.remote == remote]
        assert sum(event.count for event in states if event.new_state == "SYN_SENT") == 3
        assert sum(event.count for event in of(watch, target.pid, "error") if event.error == errno.ECONNREFUSED) == 3


def test_a_quiet_process_has_no_events(core):
    with running("print('{}', flush=True); input()") as target, tcp.watching((target.pid,), core) as watch:
        assert watch.events() == {}


def test_without_bpf_there_is_nothing():
    with tcp.watching((1,), None) as watch:
        assert watch.events() == {}


def test_nothing_stays_attached(core):
    with tcp.watching((1,), core):
        pass
    with tcp.watching((1,), core) as watch:
        assert watch.missing == ()


@pytest.mark.parametrize("core", [{"tp_btf/inet_sk_error_report", "raw_tp/inet_sk_error_report"}], indirect=True)
def test_a_missing_hook_leaves_the_others(core):
    with tcp.watching((1,), core) as watch:
        assert [missing.what for missing in watch.missing] == ["TCP events: inet_sk_error_report"]
        assert core.hooks["tcp"] == "tp_btf/tcp_retransmit_skb,inet_sock_set_state,tcp_receive_reset"
