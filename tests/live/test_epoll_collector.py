"""What real epoll sets watch, and registrations that outlived their fd."""

from __future__ import annotations

import json
import select

from stucktrace.collectors import epoll, openfiles, process
from stucktrace.facts import EpollFact

from tests.harness import kernel
from tests.harness.pythons import run
from tests.harness.scripts import running

WATCHES = """
import os, select, socket, time
a, b = socket.socketpair()
reader, writer = os.pipe()
event = os.eventfd(0) if hasattr(os, "eventfd") else reader
poll = select.epoll()
poll.register(a, select.EPOLLIN)
poll.register(writer, select.EPOLLOUT | select.EPOLLET)
print("ready", poll.fileno(), a.fileno(), writer, flush=True)
time.sleep(600)
"""
STALE = """
import os, select, time
reader, writer = os.pipe()
poll = select.epoll()
poll.register(reader, select.EPOLLIN)
pid = os.fork()
if pid == 0:
    os.close(writer)
    time.sleep(600)
os.close(reader)
print("ready", poll.fileno(), reader, pid, flush=True)
time.sleep(600)
"""
CHURN = """
import json, os, select, socket, sys, threading
poll = select.epoll()
print(json.dumps({"epoll": poll.fileno()}), flush=True)
while True:
    a, b = socket.socketpair()
    poll.register(a, select.EPOLLIN)
    a.close(); b.close()
"""


def collect(pid: int) -> tuple[EpollFact, ...]:
    return epoll.collect(process.read_process(pid), openfiles.read_fds(pid))


def test_what_a_set_watches():
    with run(WATCHES) as child:
        fd, socket, writer = map(int, child.words)
        (fact,) = collect(child.pid)
        assert fact.fd == fd
        watches = {watch.fd: watch for watch in fact.watches}
        assert watches.keys() == {socket, writer}
        assert all(watch.present and not watch.held_by for watch in fact.watches)
        assert watches[socket].events & select.EPOLLIN
        assert watches[writer].events & select.EPOLLET
        assert watches[socket].inode == kernel.socket_inode(child.pid, socket)


def test_a_registration_that_outlived_its_fd():
    with run(STALE) as child:
        fd, reader, holder = map(int, child.words)
        kernel.wait_for_call(holder, "clock_nanosleep", "select", "pselect6")
        (fact,) = collect(child.pid)
        (watch,) = fact.watches
        assert (fact.fd, watch.fd, watch.present, watch.held_by) == (fd, reader, False, (holder,))


def test_a_busy_loop_has_no_stale_registrations():
    """Files come and go between our reads: what is gone when it is looked at again is no evidence."""
    with running(CHURN) as child:
        for _ in range(200):
            for fact in collect(child.pid):
                assert all(watch.present for watch in fact.watches), json.dumps([repr(watch) for watch in fact.watches])
