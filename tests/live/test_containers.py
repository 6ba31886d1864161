"""Targets as hardened containers: other namespaces of every kind, another user and root, no capabilities, seccomp.

They get the verdicts of bare ones, with the container and the pod that they are in; by the command on the node, and by
an agent in a cgroup namespace of its own, to which a list of pods gives their names.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.harness import agent, command, crowd, kernel, namespaces, targets, trees
from tests.harness.command import Report
from tests.harness.pod_cgroups import PodCgroups, pod_cgroups
from tests.harness.pod_server import PodServer, pod, pod_server, pods

pytestmark = pytest.mark.xdist_group("containers")

CASES = {
    "rlocks_crossed": "stuck_locks.py",
    "behind_a_silent_server": "stuck_locks.py",
    "event_alone": "healthy_threads.py",
}
ASLEEP_S = 4.0
STUCK_AFTER_S = 3


@dataclass(frozen=True)
class Pair:
    """The same program in a hardened container and bare."""

    hardened: trees.Contained
    cgroups: PodCgroups
    bare: trees.Contained | None = None


@contextlib.contextmanager
def hardened(release: str, case: str, folder: Path, prefix: tuple[str, ...] = ()) -> Iterator[Pair]:
    """With what the kubelet mounts into a container from its folder of the pod."""
    with contextlib.ExitStack() as stack:
        cgroups = stack.enter_context(pod_cgroups())
        log = folder / "pods" / cgroups.pod / "containers" / "app" / "0a1b2c3d"
        log.parent.mkdir(parents=True)
        log.touch()
        binds = [(log, "/dev/termination-log")]
        target = trees.harden(release, CASES[case], case, cgroups=cgroups.folders, binds=binds, prefix=prefix)
        yield Pair(stack.enter_context(target), cgroups)


def wait_until_asleep(target: trees.Contained, seconds: float = ASLEEP_S) -> None:
    for tid in target.words[1:3] or [target.pid]:
        kernel.wait_until(lambda tid=tid: kernel.asleep_s(target.pid, tid) > seconds, f"{tid} asleep")  # type: ignore[misc]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The kubelet's, which the root of a user namespace may enter: pytest's own folders are this root's alone."""
    with tempfile.TemporaryDirectory(prefix="kubelet-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Iterator[dict[tuple[str, str], Pair]]:
    wanted = [*(("trixie", case) for case in CASES), ("bullseye", "rlocks_crossed"), ("bookworm", "rlocks_crossed")]
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(crowd.STARTERS) as pool:
            started = pool.map(lambda one: stack.enter_context(hardened(*one, folder)), wanted)
            alone = pool.map(
                lambda case: stack.enter_context(trees.start("trixie", CASES[case], case, contained=False)), CASES
            )
            bare = {("trixie", case): target for case, target in zip(CASES, alone, strict=True)}
            found = {one: replace(pair, bare=bare.get(one)) for one, pair in zip(wanted, started, strict=True)}
        for pair in found.values():
            for target in filter(None, (pair.hardened, pair.bare)):
                wait_until_asleep(target)
        yield found


def reports(pairs: dict[tuple[str, str], Pair], *options: str) -> dict[int, Report]:
    """All of them looked at in one run of the command."""
    pids = [target.pid for pair in pairs.values() for target in (pair.hardened, pair.bare) if target]
    result = command.run("pid", *pids, "--json", "--stuck-after", STUCK_AFTER_S, *options)
    found = {}
    for line in result.stdout.splitlines():
        report = Report(json.loads(line))
        command.validator().validate(report)
        found[report["process"]["pid"]] = report
    assert found.keys() == set(pids), result.stderr
    return found


def essence(report: Report) -> tuple[str, ...]:
    """What the verdict says, without the numbers that differ from process to process."""
    verdict = report.verdict
    words = [verdict["code"], verdict["confidence"], verdict["summary"], *verdict["chain"]]
    return tuple(re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", word) for word in words)


@pytest.mark.parametrize("options", [(), ("--engine", "none")], ids=["core", "none"])
def test_the_same_verdict_as_a_bare_one_with_the_container_and_the_pod(
    pairs: dict[tuple[str, str], Pair], options: tuple[str, ...]
):
    found = reports(pairs, *options)
    for (_, case), pair in pairs.items():
        report = found[pair.hardened.pid]
        if pair.bare is not None:
            assert essence(report) == essence(found[pair.bare.pid]), case
            assert found[pair.bare.pid]["process"]["container"] is None
        wanted = {"rlocks_crossed": "deadlock", "event_alone": "idle"}.get(case, "peer-silent")
        assert report.code == wanted, report.text()
        process = report["process"]
        assert process["container"] == {
            "id": pair.cgroups.container, "pod": pair.cgroups.pod, "name": "app", "pod_name": None, "namespace": None,
        }  # fmt: skip
        assert (process["ns_pid"], process["python"]["version"][:4] in "3.9. 3.11 3.13") == (1, True)
        status = Path(f"/proc/{pair.hardened.pid}/status").read_text()
        assert re.search(r"CapBnd:\s*0+\nCapAmb:\s*0+\nNoNewPrivs:\s*1\nSeccomp:\s*2\n", status), status
        assert not report["seen"]["missing"], report["seen"]
        assert pair.cgroups.container[:12] in report.text() and pair.cgroups.pod in report.text()


def test_the_commands_ask_for_names_where_the_settings_say_so(pairs: dict[tuple[str, str], Pair], tmp_path: Path):
    pair = pairs["trixie", "event_alone"]
    with pod_server(tmp_path) as server:
        server.body = pods(pod(pair.cgroups.pod, "shop", "web-1", app=pair.cgroups.container))
        environment = of_settings(server, "kubelet")
        report = command.explain(pair.hardened.pid, env=environment)
        assert (report["process"]["container"]["pod_name"], report["process"]["container"]["namespace"]) == (
            "web-1",
            "shop",
        )
        table = command.run("ps", "--match", "event_alone", "--no-verdict", "--json", env=environment)
        found = [
            one["container"] for one in map(json.loads, table.stdout.splitlines()) if one["pid"] == pair.hardened.pid
        ]
        assert [(one["pod_name"], one["namespace"], one["name"]) for one in found] == [("web-1", "shop", "app")]
        assert server.asked == [("/pods", "Bearer first")] * 2
        server.status = 403
        refused = command.run("pid", pair.hardened.pid, env=environment)
        assert refused.status == 0 and f"pod {pair.cgroups.pod}" in refused.stdout
        assert "403; pods are called by their uid; allow the service account to get nodes/pods" in refused.stderr


def of_settings(server: PodServer, way: str) -> dict[str, str]:
    settings = {"PODS": way, "URL": server.url, "TOKEN_FILE": server.token_file, "CA_FILE": server.authority}
    return {f"STUCKTRACE_KUBERNETES_{name}": str(value) for name, value in settings.items()}


AGENT = """
for folder in $FOLDERS; do echo $$ > "$folder/cgroup.procs"; done
exec unshare --cgroup --uts "$@"
"""


def test_an_agent_in_a_pod_says_where_by_name(folder: Path, tmp_path: Path):
    """Of a node that is a PID namespace, as kind's are; from its own cgroup namespace the path begins with "/../.."."""
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(targets.start(("sleep", "3600"), prefix=agent.ALONE, ready=False))
        (first,) = kernel.wait_for_children(node.pid, 1)
        inside = ("nsenter", "-t", str(first), "-p", "-m")
        pair = stack.enter_context(hardened("trixie", "rlocks_crossed", folder, inside))
        wires, own = stack.enter_context(namespaces.pair()), stack.enter_context(pod_cgroups())
        server = stack.enter_context(pod_server(tmp_path, namespaces.listen(wires.here)))
        server.body = pods(pod(pair.cgroups.pod, "shop", "web-1", app=pair.cgroups.container))
        environment = [f"{name}={value}" for name, value in of_settings(server, "api").items()]
        folders = f"FOLDERS={' '.join(map(str, own.folders))}"
        allowed = ["env", "NODE_NAME=node-1", *environment, folders, "sh", "-ec", AGENT, "sh"]
        options = ("--stuck-after", STUCK_AFTER_S, "--match", "stuck_locks")
        with agent.watching(first, *options, netns=wires.here, allowed=allowed) as watcher:
            opened = watcher.wait_for("opened")
            report = Report(opened["report"])
            assert (report.code, report.confidence) == ("deadlock", "proven"), report.text()
            assert report["process"]["container"] == {
                "id": pair.cgroups.container, "pod": pair.cgroups.pod, "name": "app", "pod_name": "web-1", "namespace": "shop",
            }  # fmt: skip
            assert [one["pod"] for one in opened["affected"]] == ["shop/web-1"]
            assert server.asked == [
                ("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1&resourceVersion=0", "Bearer first")
            ]
            assert not report["seen"]["missing"], report["seen"]
            assert "pod shop/web-1" in report.text()
