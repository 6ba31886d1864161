"""The debug-container routes: `stucktrace pid 1` beside a hardened container, in its PID and network namespaces.

As kubectl debug --target makes it (mounts and cgroup of its own), with more or fewer rights. What may not be read is in `missing` with the way to see
it, and the verdict is true all the same: never healthy where what would tell could not be read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import command, crowd, elsewhere, kernel, targets, trees
from tests.harness.command import Report

pytestmark = pytest.mark.xdist_group("containers")

CASES = {
    "rlocks_crossed": "stuck_locks.py",
    "behind_a_silent_server": "stuck_locks.py",
    "event_alone": "healthy_threads.py",
}
UID = 1001
ASLEEP_S = 4.0
STUCK_AFTER_S = 3
DEFAULT = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap"
"""What the runtimes grant to everybody."""


def granted(names: str, user: int = 0) -> tuple[str, ...]:
    change = ("--reuid", str(user), "--regid", str(user), "--clear-groups") if user else ()
    return (
        "setpriv",
        *change,
        "--inh-caps=-all",
        "--bounding-set",
        f"-all{',' if names else ''}{names}",
        "--no-new-privs",
    )


ROUTES = {
    "SYS_PTRACE alone": granted("+sys_ptrace"),
    "SYS_PTRACE and DAC_READ_SEARCH": granted("+sys_ptrace,+dac_read_search"),
    "the target's own user": granted("", UID),
    "the profile general": granted(f"{DEFAULT},+sys_ptrace"),
    "what everybody has": granted(DEFAULT),
    "none at all": granted(""),
    "another user": granted("", 65534),
}
SIGHTED = ("SYS_PTRACE and DAC_READ_SEARCH", "the target's own user", "the profile general")
MOUNT = 'mount -t proc proc /proc && exec "$@"'


@pytest.fixture(scope="module")
def containers() -> Iterator[dict[str, trees.Contained]]:
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(crowd.STARTERS) as pool:
        started = pool.map(
            lambda case: stack.enter_context(trees.harden("trixie", CASES[case], case, own_users=False)), CASES
        )
        found = dict(zip(CASES, started, strict=True))
        for target in found.values():
            for tid in target.words[1:3] or [target.pid]:
                kernel.wait_until(lambda pid=target.pid, tid=tid: kernel.asleep_s(pid, tid) > ASLEEP_S, f"{tid} asleep")  # type: ignore[misc]
        yield found


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with elsewhere.installed() as found:
        yield {**found, "KUBERNETES_SERVICE_HOST": "10.96.0.1"}


def beside(target: trees.Contained, route: tuple[str, ...], *enter: str) -> tuple[str, ...]:
    """In the PID namespace of the container and those named besides, with the others its own."""
    joined = ("nsenter", "-t", str(target.pid), "--pid", *(enter or ("--net",)))
    return (*joined, "unshare", "--cgroup", "--uts", "--mount", "--fork", "sh", "-c", MOUNT, "sh", *route)


def look(environment: dict[str, str], prefix: tuple[str, ...]) -> tuple[Report, int]:
    done = elsewhere.run(environment, "pid", 1, "--json", "--stuck-after", STUCK_AFTER_S, prefix=prefix)
    assert done.stdout, done.stderr
    report = Report(json.loads(done.stdout))
    command.validator().validate(report)
    assert report["process"]["pid"] == 1 and report["process"]["kind"] in ("python", "other")
    return report, done.returncode


@pytest.mark.parametrize("name", SIGHTED)
def test_routes_that_see_it_all(containers: dict[str, trees.Contained], environment: dict[str, str], name: str):
    report, status = look(environment, beside(containers["rlocks_crossed"], ROUTES[name]))
    assert (report.code, report.confidence, status) == ("deadlock", "proven", 1), report.text()
    assert {one["what"] for one in report["seen"]["missing"]} <= {"BPF"}, report["seen"]


def test_a_socket_needs_no_capability_beside_it(containers: dict[str, trees.Contained], environment: dict[str, str]):
    """As docker run --pid=container:NAME makes it, in a network namespace of its own, only its timers are missing."""
    target = containers["behind_a_silent_server"]
    for enter, lacks in (("--net",), {"BPF"}), (("--ipc",), {"BPF", "unacknowledged data and ages of sockets"}):
        report, status = look(environment, beside(target, ROUTES["the target's own user"], *enter))
        assert (report.code, report.confidence, status) == ("peer-silent", "likely", 1), report.text()
        assert {one["what"] for one in report["seen"]["missing"]} == lacks, report["seen"]


@pytest.mark.parametrize("name", [name for name in ROUTES if name not in SIGHTED])
def test_routes_that_do_not_are_told_of_one_that_does(
    containers: dict[str, trees.Contained], environment: dict[str, str], name: str
):
    report, status = look(environment, beside(containers["rlocks_crossed"], ROUTES[name]))
    assert (report.code, status) == ("inconclusive", 4), report.text()
    rights = report["seen"]["missing"][0]
    assert rights["what"] == "rights of this container" and f"the target as user {UID}" in rights["because"], rights
    assert ("CAP_SYS_PTRACE" in rights["because"]) == (name != "SYS_PTRACE alone"), rights
    assert "kubectl debug -it POD --image=IMAGE --target=CONTAINER --profile=sysadmin" in rights["remedy"]
    assert f"runAsUser: {UID}" in rights["remedy"] and ("runAsUser: 0" in rights["remedy"]) == (name == "another user")
    assert any("--profile=sysadmin" in later["do"] for later in report.verdict["remedy"]["later"]), report.text()
    if name == "SYS_PTRACE alone":
        assert "asleep under takes (targets/stuck_locks.py:" in report.summary, report.text()


def test_stacks_alone_make_nothing_healthy_that_hangs(
    containers: dict[str, trees.Contained], environment: dict[str, str]
):
    for case, wanted in ("behind_a_silent_server", ("inconclusive", 4)), ("event_alone", ("idle", 0)):
        report, status = look(environment, beside(containers[case], ROUTES["SYS_PTRACE alone"]))
        assert (report.code, status) == wanted, report.text()


def test_beside_a_container_in_a_user_namespace_of_its_own(environment: dict[str, str]):
    """As root of that namespace, like the containers of a pod with hostUsers: false."""
    with trees.harden("trixie", "stuck_locks.py", "rlocks_crossed") as target:
        for tid in target.words[1:3]:
            kernel.wait_for_call(target.pid, "futex", tid=tid)
            kernel.wait_until(lambda tid=tid: kernel.asleep_s(target.pid, tid) >= 1.0, "a second in it")
        route = granted("+sys_ptrace,+dac_read_search")
        report, status = look(environment, beside(target, route, "--user", "--net"))
        assert (report.code, report.confidence, status) == ("deadlock", "proven", 1), report.text()


ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def test_a_container_that_does_not_share_the_targets_pids(environment: dict[str, str]):
    for prefix in (ALONE, (*ALONE, "sh", "-c", '"$@"; exit $?', "sh")):
        done = elsewhere.run(environment, "pid", 1, prefix=prefix)
        assert done.returncode == 3 and done.stdout == "", done
        assert "does not see the processes of another; kubectl debug --target=CONTAINER" in done.stderr
    wrong = elsewhere.run(environment, "pid", 27067, prefix=ALONE)
    assert (
        wrong.returncode == 3
        and "no process 27067; " in wrong.stderr
        and "PID namespace, not the node's" in wrong.stderr
    )


def test_a_pod_whose_containers_share_one_pid_namespace(environment: dict[str, str], tmp_path):
    """Process 1 is the sandbox's, and the target has no parent in there."""
    pause = tmp_path / "pause"
    pause.symlink_to("/bin/sleep")
    with targets.start((str(pause), "3600"), prefix=ALONE, ready=False) as sandbox:
        (first,) = kernel.wait_for_children(sandbox.pid, 1)
        kernel.wait_until(lambda: (f"/proc/{first}/comm", open(f"/proc/{first}/comm").read().strip())[1] == "pause")
        with targets.start("healthy_threads.py", "event_alone", prefix=("nsenter", "-t", str(first), "--pid")):
            done = elsewhere.run(environment, "pid", 1, prefix=("nsenter", "-t", str(first), "--pid", "--mount"))
            assert done.returncode == 0 and re.search(r"^idle  pid [2-9]", done.stdout), done
            assert "process 1 stands above the Python to look at: " in done.stderr


@pytest.mark.parametrize(("way", "user"), [("invisible", 65534), ("ptraceable", 0)])
def test_processes_that_proc_hides(
    containers: dict[str, trees.Contained], environment: dict[str, str], way: str, user: int
):
    """Root is not exempt without CAP_SYS_PTRACE."""
    prefix = beside(containers["event_alone"], granted("", user))
    prefix = tuple(MOUNT.replace("-t proc", f"-t proc -o hidepid={way}") if word == MOUNT else word for word in prefix)
    done = elsewhere.run(environment, "pid", 1, prefix=prefix)
    assert done.returncode == 3 and "hidepid" in done.stderr and "CAP_SYS_PTRACE" in done.stderr, done
    listed = elsewhere.run(environment, "pid", prefix=prefix)
    assert "hidepid" in listed.stderr, listed
