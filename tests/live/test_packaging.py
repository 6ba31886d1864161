"""What is in packaging/: the image's steps and the unit are sound, and what manifests and unit grant is enough."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import yaml
from stucktrace import privileges

from tests.harness import agent, chart, command, installed, namespaces, targets
from tests.harness.installed import Installed

PACKAGING = Path(__file__).parents[2] / "packaging"
UNIT = PACKAGING / "systemd" / "stucktrace-agent.service"
DROP_IN = PACKAGING / "systemd" / "network-namespaces.conf"
ANOTHER_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs")


def granted() -> dict[str, Any]:
    """The agent's security context in the DaemonSet."""
    documents = list(yaml.safe_load_all(chart.MANIFEST.read_text()))
    (container,) = chart.of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    return container["securityContext"]  # type: ignore[no-any-return]


def unit_values(name: str, unit: Path = UNIT) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def as_the_container() -> list[str]:
    """Root with the DaemonSet's capabilities, as a runtime starts it."""
    capabilities = granted()["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    return [
        "setpriv",
        "--bounding-set=-all" + "".join(f",+{name.lower()}" for name in capabilities["add"]),
        "--inh-caps=-all",
        "--no-new-privs",
    ]


def as_the_service() -> list[str]:
    """Another user with the unit's ambient capabilities, as systemd starts it."""
    (ambient,) = unit_values("AmbientCapabilities")
    assert unit_values("CapabilityBoundingSet") == [ambient] and unit_values("NoNewPrivileges") == ["yes"]
    names = "-all" + "".join(f",+{name.removeprefix('CAP_').lower()}" for name in ambient.split())
    user = ["setpriv", "--reuid=64999", "--regid=64999", "--clear-groups"]
    return [*user, f"--inh-caps={names}", f"--ambient-caps={names}", f"--bounding-set={names}", "--no-new-privs"]


def test_pod_and_service_are_granted_what_the_table_of_privileges_says():
    assert granted()["capabilities"]["add"] == list(privileges.AGENT)
    for text, wanted in ((UNIT, privileges.AGENT), (DROP_IN, privileges.ENTERING)):
        for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
            assert unit_values(name, text) == [" ".join(f"CAP_{one}" for one in wanted)]


def test_the_unit_is_one_that_systemd_takes_and_closed(tmp_path: Path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/stucktrace", str(command.COMMAND)))
    analyze = ("systemd-analyze", "security", "--offline=yes", unit)
    rated = subprocess.run([*analyze, "--threshold=35"], capture_output=True, text=True, timeout=120)
    assert rated.returncode == 0, f"less closed than it was:\n{rated.stdout}{rated.stderr}"
    drop_ins = tmp_path / f"{UNIT.name}.d"
    drop_ins.mkdir()
    for extra in (None, DROP_IN):
        if extra:
            shutil.copy(extra, drop_ins)
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_unit_lets_pass_what_the_seccomp_profile_does():
    profile = json.loads((PACKAGING / "seccomp.json").read_text())
    needed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    (granted_words,) = unit_values("SystemCallFilter")
    # Only rabbitmqctl in a container takes another root.
    assert needed - system_calls(granted_words.split()) <= {"chroot"}


def system_calls(words: list[str]) -> set[str]:
    """systemd's groups as the system calls in them."""
    found = {word for word in words if not word.startswith("@")}
    for group in (word for word in words if word.startswith("@")):
        listed = ["systemd-analyze", "syscall-filter", group]
        done = subprocess.run(listed, capture_output=True, text=True, check=True, timeout=120)
        lines = (line.strip() for line in done.stdout.splitlines()[1:])
        found |= system_calls([line for line in lines if line and not line.startswith("#")])
    return found


def test_the_image_is_made_of_what_there_is():
    text = (PACKAGING / "Containerfile").read_text().replace("\\\n", " ")
    packages = {
        word for line in re.findall(r"--no-install-recommends ([^&\n]+)", text) for word in line.split() if word
    }
    assert {"libbpf1", "python3", "clang"} <= packages
    for package in sorted(packages):
        known = subprocess.run(["apt-cache", "show", package], capture_output=True, text=True, timeout=120)
        assert known.returncode == 0, f"{package}: {known.stderr}"
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied >= set(installed.SOURCES), set(installed.SOURCES) - copied
    sent = {line[1:] for line in (PACKAGING.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == copied


@pytest.fixture
def readable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """gunicorn and its application where every user may read them."""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    for name in ("gunicorn", "packaging"):
        found = util.find_spec(name)
        assert found is not None and found.origin is not None
        shutil.copytree(Path(found.origin).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(targets.TARGETS / "web_app.py", folder)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.xdist_group("wheel")
@pytest.mark.parametrize("allowed", [as_the_container, as_the_service])
def test_what_is_granted_is_enough(allowed: Any, readable: Path, wheel: Installed):
    """A stuck worker of another user in another network namespace, with all of its proof."""
    program = wheel.command
    user = ["env", "--chdir=/", "PWD=/", f"PYTHONPATH={readable}", *ANOTHER_USER, "/usr/bin/python3"]
    doctor = command.run("doctor", prefix=allowed(), command=program, cwd=Path("/"))
    assert "NO    python-stacks" not in doctor.stdout and "NO    bpf" not in doctor.stdout, doctor.stdout
    with (
        namespaces.pair() as pair,
        targets.start("http_holder.py", "deaf", pair.there_address, netns=pair.there) as holder,
        agent.gunicorn("--timeout", 30, "--chdir", str(readable), workers=2, netns=pair.here, python=user) as server,
        agent.watching(server.master, "--stuck-after", 6, allowed=allowed(), program=program) as watcher,
    ):
        with server.request(f"/fetch?url=http://{pair.there_address}:{holder.said}/"):
            opened = watcher.wait_for("opened")
            report = command.Report(opened["report"])
            assert report.code == "peer-silent", report.text()
            assert report["seen"]["engine"] == "core" and not report["seen"]["missing"], report["seen"]
            assert report.socket()["remote"] == f"{pair.there_address}:{holder.said}"
            assert report["process"]["worker"]["timeout_s"] == 30 and report["process"]["fd_count"]
            thread = next(one for one in report["threads"] if one["tid"] == report.verdict["tid"])
            assert "fetch" in {frame["function"] for frame in thread["python"]}
            beside = ["nsenter", "-t", str(server.master), "-p", "-m", *allowed()]
            table = command.run("ps", "--stuck-after", 6, prefix=beside, command=program)
            assert table.status == 0 and "peer-silent" in table.stdout, table
        resolved = watcher.wait_for("resolved")
        assert (resolved["id"], resolved["how"]) == (opened["id"], "killed"), resolved
