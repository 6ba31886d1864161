"""Who holds which end of real pipes and FIFOs."""

from __future__ import annotations

import os
from pathlib import Path

from stucktrace.collectors import file_holders, openfiles, pipes, process
from stucktrace.facts import PipeFact

from tests.harness import kernel
from tests.harness.pythons import run

FORKED = """
import os, time
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(writer)
    os.read(reader, 1)
os.close(reader)
print("ready", pid, writer, flush=True)
time.sleep(600)
"""


def pipe(pid: int, fd: int) -> PipeFact:
    found = pipes.collect(process.read_process(pid), openfiles.read_fds(pid))
    return next(fact for fact in found if fd in fact.fds)


def test_a_pipe_between_parent_and_child():
    with run(FORKED) as parent:
        child, writer = map(int, parent.words)
        kernel.wait_for_call(child, "read")
        fact = pipe(parent.pid, writer)
        assert (fact.end, fact.readers, fact.writers, fact.path) == ("write", (child,), (parent.pid,), "")
        assert fact.inode == int(os.readlink(f"/proc/{parent.pid}/fd/{writer}")[6:-1])
        inside = next(
            one
            for one in pipes.collect(process.read_process(child), openfiles.read_fds(child))
            if one.inode == fact.inode
        )
        assert (inside.end, inside.readers, inside.writers) == ("read", (child,), (parent.pid,))


def test_both_ends_in_one_hand():
    with run("import os, time\nends = os.pipe()\nprint('ready', *ends, flush=True); time.sleep(600)") as child:
        reader, writer = map(int, child.words)
        fact = pipe(child.pid, reader)
        assert (fact.end, fact.fds, fact.readers, fact.writers) == (
            "both",
            (reader, writer),
            (child.pid,),
            (child.pid,),
        )


def test_a_named_fifo(tmp_path: Path):
    path = tmp_path / "a fifo"
    os.mkfifo(path)
    code = f"import os, time\nfd = os.open({str(path)!r}, os.O_RDWR)\nprint('ready', fd, flush=True); time.sleep(600)"
    with run(code) as child:
        (fd,) = map(int, child.words)
        fact = pipe(child.pid, fd)
        assert (fact.path, fact.end, fact.readers) == (str(path), "both", (child.pid,))
        assert fact.inode == path.stat().st_ino


def test_one_search_for_a_family():
    with run(FORKED) as parent:
        child, writer = map(int, parent.words)
        kernel.wait_for_call(child, "read")
        tables = {pid: openfiles.read_fds(pid) for pid in (parent.pid, child)}
        facts = {pid: process.read_process(pid) for pid in tables}
        held = file_holders.find({link for pid in tables for link in pipes.links(facts[pid], tables[pid])})
        for pid in tables:
            assert [
                (one.inode, one.end, one.readers, one.writers) for one in pipes.collect(facts[pid], tables[pid], held)
            ] == [(one.inode, one.end, one.readers, one.writers) for one in pipes.collect(facts[pid], tables[pid])]


def test_no_pipe_no_search(monkeypatch):
    monkeypatch.setattr(file_holders, "find", lambda _: 1 / 0)
    assert pipes.collect(process.read_process(os.getpid()), openfiles.OpenFiles({0: "/dev/null"})) == ()
