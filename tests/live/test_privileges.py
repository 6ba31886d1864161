"""agent/privileges.py is true: what it documents is enough, each capability is needed, and its absence is named.

Everything looks at one hang, at the same time.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stucktrace import privileges as documented

from tests import privileges as page
from tests.harness import command, privileges
from tests.harness.installed import Installed
from tests.harness.privileges import Watched

pytestmark = pytest.mark.xdist_group("wheel")
STATE = Path("/var/tmp")
"""A folder that is always there, as the agent's own in a read-only tree."""
WIDER = (*documented.AGENT, *documented.ENTERING, "NET_RAW")
COMMANDS: dict[str, tuple[tuple[str | int, ...], str]] = {
    "probe": (("pid", "PID", "--probe"), "NET_RAW"),
    "amqp": (("amqp", "PID", "--for", "1s"), "NET_RAW"),
    # It ends a connection of its own as unstick does.
    "doctor": (("doctor", "--json"), "NET_ADMIN"),
    "conntrack": (("conntrack", "PID"), "SYS_ADMIN"),
}
"""Command -> its words, and the capability that the agent has not got and is taken away here."""
ALSO: dict[str, tuple[str | int, ...]] = {
    "ps": ("ps", "--all", "--json"),
    "audit": ("audit", "PID", "--json"),
    "native": ("pid", "PID", "--native", "--json"),
    "none": ("pid", "PID", "--engine", "none", "--json"),
}


REFUSALS = {
    "a seccomp profile without bpf": ("BPF", "seccomp profile"),
    "a security module": ("open files", "a security module"),
    "a user namespace": ("open files", "hostUsers: true"),
}
"""What refuses although every capability is there -> what is missed for it, and how the refusal is named."""


class Looks:
    """What each of them saw; all of them were begun together."""

    def __init__(self, pool: ThreadPoolExecutor, hung: privileges.Hang, program: Path) -> None:
        self.hung = hung
        self._program = program
        self._pool = pool
        self._found: dict[str, Future[Any]] = {}

    def agent(self, name: str, prefix: list[str], *options: str, state: Path | None = None) -> None:
        watch = privileges.watch
        self._found[name] = self._pool.submit(watch, self.hung, self._program, prefix, *options, state=state)

    def run(self, name: str, prefix: list[str], words: tuple[str | int, ...]) -> None:
        filled = [str(self.hung.pid) if word == "PID" else word for word in words]
        run: Callable[..., Any] = command.run
        self._found[name] = self._pool.submit(run, *filled, prefix=prefix, command=self._program, cwd=Path("/"))

    def __getitem__(self, name: str) -> Any:
        return self._found[name].result()


@pytest.fixture(scope="module")
def looks(wheel: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looks]:
    with ThreadPoolExecutor(4) as pool, privileges.hang() as hung:
        looks = Looks(pool, hung, wheel.command)
        exact, filtered = documented.AGENT, privileges.filtered()
        confined = [*privileges.read_only(STATE), *privileges.as_root(exact), *filtered]
        looks.agent("as the container", confined, "--journal", str(STATE), state=STATE)
        looks.agent("as the service", privileges.as_user(exact))
        for name in exact:
            looks.agent(f"without {name}", privileges.as_root([one for one in exact if one != name]))
        everything = [*privileges.as_root(WIDER), *filtered]
        for name, (words, lost) in COMMANDS.items():
            looks.run(name, everything, words)
            looks.run(f"{name} without", privileges.as_root([one for one in WIDER if one != lost]), words)
        for name, words in ALSO.items():
            looks.run(name, everything, words)
        folder = tmp_path_factory.mktemp("profiles")
        refusing = {
            "a seccomp profile without bpf": privileges.filtered(privileges.profile_without(folder, "bpf")),
            "a security module": privileges.by_a_security_module(),
            "a user namespace": ["unshare", "--user", "--map-root-user"],
        }
        for name in REFUSALS:
            looks.run(name, refusing[name], ("pid", "PID", "--json"))
        yield looks


def test_the_page_is_written_from_the_data():
    assert page.PAGE.read_text() == page.page(), "run python -m tests.privileges"


def capabilities(text: str) -> set[str]:
    return set(re.findall(r"CAP_([A-Z_]+)", text))


def remedies(report: dict[str, Any]) -> list[str]:
    return [missing["remedy"] for missing in report["seen"]["missing"]]


@pytest.mark.parametrize("who", ["as the container", "as the service"])
def test_what_is_documented_is_enough(looks: Looks, who: str):
    watched: Watched = looks[who]
    assert watched.event is not None, watched.said
    report = command.Report(watched.event["report"])
    command.validator().validate(report)
    assert report.code == "half-open", report.text()
    assert report["seen"]["missing"] == [] and report["seen"]["engine"] == "core", report["seen"]
    connection = report.socket()
    assert connection["remote"] == looks.hung.remote and connection["retransmits"], connection
    assert connection["conntrack"] == "present", connection
    assert {owner["tid"] for lock in report["locks"] for owner in lock["owners"]} == {looks.hung.holder}, report[
        "locks"
    ]
    stuck = next(thread for thread in report["threads"] if thread["tid"] == report.verdict["tid"])
    assert "ask" in {frame["function"] for frame in stuck["python"]}, stuck
    assert report["process"]["fd_count"], report["process"]


def test_nothing_is_written_but_the_journal(looks: Looks):
    """Else it would have failed: all else is read-only."""
    watched: Watched = looks["as the container"]
    assert watched.written and all(name.endswith(".journal") for name in watched.written), watched.written


@pytest.mark.parametrize("name", documented.AGENT)
def test_without_one_of_them_it_is_named(looks: Looks, name: str):
    """And no other one that is there."""
    watched: Watched = looks[f"without {name}"]
    assert watched.event is not None, watched.said
    report = watched.event["report"]
    there = set(documented.AGENT) - {name}
    said = [*remedies(report), watched.said]
    assert any(capabilities(remedy) == {name} for remedy in remedies(report)), said
    assert not any(capabilities(text) & there for text in said), said


@pytest.mark.parametrize("name", REFUSALS)
def test_what_refuses_all_the_same_is_no_capability(looks: Looks, name: str):
    what, word = REFUSALS[name]
    report = json.loads(looks[name].stdout)
    found = {missing["what"]: missing["remedy"] for missing in report["seen"]["missing"]}
    assert word in found[what], found
    assert not capabilities("".join(found.values())), found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_what_it_lacks(looks: Looks, name: str):
    lost = COMMANDS[name][1]
    enough, less = looks[name], looks[f"{name} without"]
    assert "CAP_" not in enough.stdout + enough.stderr, enough
    said = capabilities(less.stdout + less.stderr)
    assert said == {lost}, (less.stdout, less.stderr)


def test_every_command_works_behind_the_seccomp_profile(looks: Looks):
    abilities = {one["name"]: one for one in json.loads(looks["doctor"].stdout)["abilities"]}
    assert [one for one in abilities.values() if not one["works"] and one["needed"]] == []
    assert all(abilities[name]["works"] for name in ("setns", "conntrack", "packets", "raw-sockets", "sock-destroy"))
    assert looks["ps"].status == 0 and looks["audit"].status == 5, (looks["ps"], looks["audit"])
    for name in ("native", "none"):
        report = command.Report(json.loads(looks[name].stdout))
        assert report.code == "half-open" and report["seen"]["missing"] == [], report.text()
    assert looks["probe"].status == 1 and "probe of the connection" not in looks["probe"].stdout
    # It waits for the first frame in vain.
    assert looks["amqp"].status == 4 and "no AMQP frame passed" in looks["amqp"].stderr
    assert looks["conntrack"].status == 0, looks["conntrack"]


REFUSED = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def refused(*arguments):
    return libc.syscall(*map(ctypes.c_long, arguments)) == -1 and ctypes.get_errno() == errno.EPERM
CLONE_NEWUSER, SIGCHLD, AF_ALG, PTRACE_SEIZE = 0x10000000, 17, 38, 0x4206
calls = dict(mount=(165,), reboot=(169, 0), kexec_load=(246,), init_module=(175,), unshare=(272, 0), ptrace=(101, PTRACE_SEIZE, 1, 0, 0),
    process_vm_writev=(311,), keyctl=(250, 0), clone=(56, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), socket=(41, AF_ALG, 5, 0), open_by_handle_at=(304,))
print([name for name, arguments in calls.items() if not refused(*arguments)])
"""
"""Numbers of x86_64. None of them does anything where it is let through: the arguments are wrong or harmless."""


def test_what_nobody_needs_is_refused():
    done = subprocess.run([*privileges.filtered(), privileges.PYTHON, "-c", REFUSED], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", ""), done
    without = subprocess.run(
        [privileges.PYTHON, "-c", REFUSED.replace("clone=(56, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), ", "")],
        capture_output=True,
        text=True,
    )
    assert "unshare" in without.stdout and "keyctl" in without.stdout, without
