"""Opening the kernel side: with what rights it works, what is said where it does not, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stucktrace.collectors import kernel, libbpf, threads, waits
from stucktrace.errors import CannotInspect

from tests.harness import command

WITHOUT = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs")
# uid 0 without capabilities but these two: what a least-privilege agent has.
BPF_ALONE = ("setpriv", "--bounding-set", "-all,+bpf,+perfmon", "--inh-caps", "-all", "--no-new-privs")


def run_inside(source: str, *prefix: str, argument: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", source, argument], capture_output=True, text=True, timeout=200, check=False
    )


OPEN = """
import json, os, sys
from stucktrace.collectors import kernel, threads
from stucktrace.errors import CannotInspect
try:
    opened = kernel.open_kernel(sys.argv[1])
except CannotInspect as error:
    print(json.dumps({"error": error.message, "remedy": error.remedy, "status": error.exit_status}))
else:
    facts = threads.collect([os.getppid(), os.getpid()], opened.kernel)
    print(json.dumps({
        "kernel": opened.kernel is not None, "missing": [[m.what, m.because, m.remedy] for m in opened.missing],
        "hooks": opened.kernel.hooks if opened.kernel else {},
        "calls": [t.syscall.name for t in facts[os.getppid()] if t.syscall],
    }))
"""


def test_none_does_without():
    assert kernel.open_kernel("none") == kernel.Opened(None, ())


def test_core_works_here():
    opened = kernel.open_kernel("core")
    with opened.kernel as core:
        assert opened.missing == ()
        assert threads.collect([os.getpid()], core)[os.getpid()]
        assert core.hooks == {"threads": "iter/task"}
        assert core.lost_records() == 0


def test_without_capabilities_auto_says_why_and_goes_on():
    out = run_inside(OPEN, *WITHOUT, argument="auto")
    assert out.returncode == 0, out.stderr
    said = json.loads(out.stdout)
    assert said["kernel"] is False
    ((what, because, remedy),) = said["missing"]
    assert what == "BPF"
    assert "CAP_BPF" in because and "CAP_PERFMON" in because
    assert "CAP_BPF" in remedy
    assert out.stderr == ""


def test_without_capabilities_core_is_refused_with_the_remedy():
    out = run_inside(OPEN, *WITHOUT, argument="core")
    assert out.returncode == 0, out.stderr
    said = json.loads(out.stdout)
    assert said["status"] == 3
    assert "CAP_BPF" in said["error"] and "CAP_BPF" in said["remedy"]
    assert out.stderr == ""


def test_two_capabilities_are_enough():
    """CAP_BPF and CAP_PERFMON: no CAP_SYS_PTRACE is needed for what a thread is in."""
    out = run_inside(OPEN, *BPF_ALONE, argument="core")
    assert out.returncode == 0, out.stderr
    said = json.loads(out.stdout)
    assert said.get("kernel") is True, said
    assert said["hooks"] == {"threads": "iter/task"}
    assert said["calls"]


def test_in_a_user_namespace_auto_goes_on():
    """All capabilities there count for nothing here; that shows only in the attempt."""
    out = run_inside(OPEN, "unshare", "--user", "--map-root-user", argument="auto")
    assert out.returncode == 0, out.stderr
    said = json.loads(out.stdout)
    assert said["kernel"] is False
    assert said["missing"][0][0] == "BPF"
    assert out.stderr == ""


def test_a_refused_object_says_which():
    libbpf.library()
    with pytest.raises(libbpf.BpfError, match="nothing.bpf.o"):
        libbpf.Object("/nonexistent/nothing.bpf.o")


def test_core_on_a_kernel_without_btf(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel, "_KERNEL_BTF", tmp_path / "vmlinux")
    with pytest.raises(CannotInspect, match="BTF") as refused:
        kernel.open_kernel("core")
    assert "CONFIG_DEBUG_INFO_BTF" in refused.value.remedy
    ((what, _, _),) = [(m.what, m.because, m.remedy) for m in kernel.open_kernel("auto").missing]
    assert what == "BPF"


@pytest.fixture
def objects_that_do_not_load(monkeypatch, tmp_path):
    for path in kernel.OBJECTS.glob("*.bpf.o"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(kernel, "OBJECTS", tmp_path)


def test_programs_that_the_kernel_does_not_take(objects_that_do_not_load):
    opened = kernel.open_kernel("auto")
    assert opened.kernel is None
    assert kernel.object_file("look").name in opened.missing[0].because
    with pytest.raises(CannotInspect, match=kernel.object_file("look").name):
        kernel.open_kernel("core")


def test_each_collector_goes_one_rung_down(objects_that_do_not_load):
    """A program that cannot be loaded costs its own facts only, and that is said."""
    with kernel.Kernel() as core:
        look = threads.look([os.getpid()], core)
        assert look.source == "/proc"
        assert os.getpid() in look.facts
        assert look.missing
        assert core.hooks["threads"] == "/proc"
        with waits.watching([os.getpid()], core) as watch:
            assert watch.complete is False
            assert watch.missing
            assert watch.activity() == {}


def test_following_one_and_many_and_none_give_the_same():
    own, parent = os.getpid(), os.getppid()
    with kernel.open_kernel("core").kernel as core:
        one = threads.collect([own], core)
        both = threads.collect([own, parent], core)
        again = threads.collect([parent], core)
        assert set(one) == {own}
        assert set(both) == {own, parent}
        assert set(again) == {parent}
        assert core.iterate("threads", 2**22 + 7) == b""
        assert threads.collect([], core) == {}


def test_nothing_stays_open():
    def open_fds() -> list[str]:
        found = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                found.append(str(entry.readlink()))
            except FileNotFoundError:
                continue
        return sorted(link for link in found if "bpf" in link)

    before = open_fds()
    with kernel.open_kernel("core").kernel as core:
        threads.collect([os.getpid()], core)
        assert len(open_fds()) > len(before)
        during = open_fds()
        for _ in range(3):
            threads.collect([os.getpid()], core)
        assert open_fds() == during
    assert open_fds() == before


WITHOUT_HEADERS = "for place in /lib/modules /usr/src; do [ ! -d $place ] || mount -t tmpfs none $place; done"
WITHOUT_BTF = "mount -t tmpfs none /sys/kernel/btf"


def hidden(*commands: str) -> tuple[str, ...]:
    return ("unshare", "--mount", "sh", "-c", f'{"; ".join(commands)}; exec "$@"', "sh")


def test_without_btf_and_headers_both_ways_out_are_named():
    inside = run_inside(OPEN, *hidden(WITHOUT_BTF, WITHOUT_HEADERS), argument="auto")
    found = json.loads(inside.stdout)
    assert not found["kernel"]
    ((_, because, remedy),) = found["missing"]
    assert "no BTF" in because and "engine bcc" in because
    assert f"linux-headers-{os.uname().release}" in remedy and "CONFIG_DEBUG_INFO_BTF" in remedy


def test_engine_bcc_without_headers_names_the_package():
    done = command.run("pid", os.getpid(), "--engine", "bcc", prefix=hidden(WITHOUT_HEADERS))
    assert (done.status, done.stdout) == (3, "")
    assert done.stderr.startswith("stucktrace: engine bcc cannot be used: ") and done.stderr.count("\n") == 1
    assert f"linux-headers-{os.uname().release}" in done.stderr
