"""/proc files as the kernel writes them, and as they look when a process is on its way out."""

from __future__ import annotations

import errno
import os

import pytest
from stucktrace.collectors import candidates, openfiles, process, procfs
from stucktrace.errors import CannotInspect, CollectorError, KernelThread, NoSuchProcess, NotPermitted

STAT = (
    "4711 (gunicorn: w) or (x) S 4700 4700 4700 0 -1 4194368 9000 10 2 0 40 12 0 0 20 0 3 0 812345 230000000 9876 "
    "18446744073709551615 94000 95000 140000 0 0 0 0 16781312 134238210 0 0 0 17 1 0 0 0 0 0 96000 97000 98000 140100 "
    "140200 140200 140300 0\n"
)


def test_stat_with_a_name_full_of_parentheses():
    stat = procfs.parse_stat(STAT)
    assert (stat.pid, stat.command, stat.state, stat.ppid) == (4711, "gunicorn: w) or (x", "S", 4700)
    assert stat.start_time == 812345
    assert stat.rss_bytes == 9876 * procfs.PAGE_BYTES
    assert stat.arg_start == 140100
    assert not stat.kernel_thread and not stat.ending


@pytest.mark.parametrize(
    ("state", "flags", "kernel_thread", "ending"),
    [("Z", 0x40004C, False, True), ("S", 0x4, False, True), ("I", 0x04208060, True, False), ("X", 0, False, True)],
)
def test_what_the_flags_say(state, flags, kernel_thread, ending):
    stat = procfs.parse_stat(STAT.replace(") S ", f") {state} ").replace("4194368", str(flags)))
    assert (stat.kernel_thread, stat.ending) == (kernel_thread, ending)


def test_status():
    fields = procfs.parse_status(
        "Name:\tgunicorn\nNSpid:\t4711\t12\nUid:\t1000\t1000\t1000\t1000\nShdPnd:\t0000000000000100\n"
    )
    assert fields["Name"] == "gunicorn"
    assert procfs.first_number(fields["Uid"]) == 1000
    assert procfs.last_number(fields["NSpid"], 4711) == 12
    assert procfs.first_number(fields["ShdPnd"], base=16) == 1 << 8


def test_numbers_that_are_none():
    assert procfs.first_number("") == 0
    assert procfs.first_number("(none)", 7) == 7
    assert procfs.last_number("", 4711) == 4711


def test_command_lines():
    assert procfs.split_argv("python\0-m\0gunicorn\0") == ("python", "-m", "gunicorn")
    assert procfs.split_argv("gunicorn: worker [app]\0\0\0\0") == ("gunicorn: worker [app]",)
    assert procfs.split_argv("sh\0-c\0\0") == ("sh", "-c")
    assert procfs.split_argv("") == ()


def test_environment():
    assert procfs.parse_environ("A=1\0B==2\0noise\0A=3\0") == {"A": "1", "B": "=2"}


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NoSuchProcess),
        (errno.ESRCH, NoSuchProcess),
        (errno.EACCES, NotPermitted),
        (errno.EPERM, NotPermitted),
        (errno.EIO, CannotInspect),
    ],
)
def test_errors_carry_their_remedy(number, kind):
    error = procfs.explained(4711, OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert "4711" in error.message and error.remedy


def test_a_process_that_never_was():
    never = 1 << 30
    with pytest.raises(NoSuchProcess):
        procfs.read_stat(never)
    with pytest.raises(NoSuchProcess):
        procfs.thread_ids(never)
    with pytest.raises(CollectorError):
        openfiles.read_fds(never)
    assert procfs.children(never) == []
    assert procfs.read_environ(never) is None
    assert procfs.read_link(never, "cwd") == ""
    assert procfs.forked(never, os.getpid()) is None


def test_a_stat_that_cannot_be_understood(monkeypatch):
    monkeypatch.setattr(procfs, "read", lambda *_: b"17 (x")
    with pytest.raises(CannotInspect):
        procfs.read_stat(17)


def test_open_files_by_kind():
    files = openfiles.OpenFiles(
        {0: "/dev/null", 3: "socket:[17]", 4: "pipe:[18]", 5: "pipe:[18]", 6: "anon_inode:[eventpoll]", 7: "socket:[17]",
         8: "pipe:[", 9: "/srv/socket:[3]"}
    )  # fmt: skip
    assert files.sockets() == {17: (3, 7)}
    assert files.pipes() == {18: (4, 5)}
    assert files.epolls() == (6,)


@pytest.mark.parametrize(
    ("pending", "same"), [("0000000000000000", True), ("0000000000000100", False), ("0000000000014002", True)]
)
@pytest.mark.parametrize("field", ["SigPnd", "ShdPnd"])
def test_a_kill_on_its_way_ends_the_look(monkeypatch, pending, same, field):
    fact = process.read_process(os.getpid())
    monkeypatch.setattr(procfs, "read_status", lambda _: {"SigPnd": "0", "ShdPnd": "0", field: pending})
    assert process.still_same(fact) is same


def test_kernel_threads_have_no_user_space(monkeypatch):
    stat = procfs.parse_stat(STAT.replace("4194368", str(0x04208060)))
    monkeypatch.setattr(procfs, "read_stat", lambda _: stat)
    for look in (process.read_process, candidates.find_python):
        with pytest.raises(KernelThread) as caught:
            look(4711)
        assert caught.value.remedy
