"""`stucktrace doctor` says what works by using it: with all rights, with none, and with one thing taken away."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest
from stucktrace import abilities as doctor_abilities
from stucktrace.collectors import kernel

from tests.harness import command, elsewhere


def abilities(text: str) -> dict[str, dict[str, object]]:
    answer = json.loads(text)
    assert answer["schema"] == "stucktrace.doctor/1"
    return {ability["name"]: ability for ability in answer["abilities"]}


def test_everything_is_there_for_root():
    result = command.run("doctor", "--json")
    found = abilities(result.stdout)
    lacking = {name: ability["seen"] for name, ability in found.items() if ability["needed"] and not ability["works"]}
    assert lacking == {}
    assert result.status == 0


def test_as_text():
    result = command.run("doctor")
    assert (result.status, result.stderr) == (0, "")
    for name in abilities(command.run("doctor", "--json").stdout):
        assert name in result.stdout


def test_without_any_capability_each_line_has_its_remedy():
    with elsewhere.installed() as environment:
        done = elsewhere.run(environment, "doctor", "--json", prefix=elsewhere.UNPRIVILEGED)
    found = abilities(done.stdout)
    assert done.returncode == 1
    assert not found["bpf-iterators"]["works"] and not found["setns"]["works"] and not found["other-users"]["works"]
    # One's own processes can be read all the same.
    assert found["python-stacks"]["works"] and found["memory"]["works"]
    for ability in found.values():
        assert bool(ability["remedy"]) is not ability["works"], ability
        assert ability["seen"] and ability["serves"]


def test_a_kernel_without_iterators_is_not_taken_for_a_forbidden_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernel, "open_kernel", partial(kernel.open_kernel, without=frozenset({"iter"})))
    with pytest.raises(doctor_abilities.Refused, match="this kernel has none") as refused:
        doctor_abilities._iterators(os.getpid())
    assert refused.value.remedy == "Linux 5.8 or newer"


def test_one_capability_less():
    """CAP_BPF and CAP_SYS_ADMIN are gone, the rest is there: BPF fails, and the remedy names what is missing."""
    with elsewhere.installed() as environment:
        done = elsewhere.run(
            environment,
            "doctor",
            "--json",
            prefix=("setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-all"),
        )
    found = abilities(done.stdout)
    assert done.returncode == 1
    assert not found["bpf-iterators"]["works"] and "CAP_BPF" in str(found["bpf-iterators"]["remedy"])
    assert found["python-stacks"]["works"] and found["other-users"]["works"]


@pytest.mark.parametrize("pyspy", [None, "#!/bin/sh\nexit 1\n"], ids=["missing", "fails"])
def test_without_py_spy(pyspy: str | None):
    with elsewhere.installed(pyspy=pyspy) as environment:
        done = elsewhere.run(environment, "doctor", "--json")
    found = abilities(done.stdout)
    assert done.returncode == 1
    assert not found["python-stacks"]["works"] and found["python-stacks"]["remedy"]
    assert found["memory"]["works"]


def test_hidepid():
    mount = ("unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=invisible proc /proc && exec "$@"', "sh")
    with elsewhere.installed() as environment:
        done = elsewhere.run(environment, "doctor", "--json", prefix=(*mount, *elsewhere.UNPRIVILEGED))
    found = abilities(done.stdout)
    assert not found["hidepid"]["works"] and "hidepid" in str(found["hidepid"]["seen"])


def test_in_a_pid_namespace_of_its_own_it_is_a_note_only():
    result = command.run("doctor", "--json", prefix=("unshare", "--pid", "--fork", "--mount-proc"))
    found = abilities(result.stdout)
    assert not found["pid-namespace"]["works"] and "hostPID" in str(found["pid-namespace"]["remedy"])
    assert result.status == 0, found
