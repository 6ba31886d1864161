"""The image's steps, executed: there is no container engine here, so every stage of the Containerfile is built in an empty
Debian of its own, and what it would run is run there, as closed as the DaemonSet makes it.

The base is a debootstrap tree of the same release in place of the image that FROM names; the Python registry is asked
once, outside (its packages come as files). All else is done as it is written.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.harness import chart, roots
from tests.harness.roots import Root
from tests.packaging.conftest import explains, hung, nothing_is_missing

ROOT = Path(__file__).parents[2]
FILE = ROOT / "packaging" / "Containerfile"
WHEELS = "/var/cache/wheels"


@dataclass
class Stage:
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instruction, arguments."""

    def last(self, instruction: str) -> str:
        return next(arguments for name, arguments in reversed(self.steps) if name == instruction)


def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    current = Stage("")
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            current = found[name or "default"] = Stage(base)
        else:
            current.steps.append((instruction, arguments))
    return found


def environment(stage: Stage) -> dict[str, str]:
    return dict(
        pair.split("=", 1) for name, arguments in stage.steps if name == "ENV" for pair in shlex.split(arguments)
    )


def carry_out(stage: Stage, root: Root, others: dict[str, Root], env: dict[str, str]) -> None:
    folder = "/"
    for instruction, arguments in stage.steps:
        if instruction == "WORKDIR":
            folder = arguments
            root.run("mkdir", "-p", folder)
        elif instruction == "RUN":
            root.run("sh", "-c", arguments, cwd=folder, env={**environment(stage), **env})
        elif instruction == "COPY" and arguments.startswith("--from="):
            origin, source, target = arguments.removeprefix("--from=").split()
            assert source == target
            root.copy_from(others[origin], source)
        elif instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                name = source if target == "./" else target
                root.copy_in(ROOT / source, f"{folder}/{name}")
        else:
            assert instruction in {"ENV", "LABEL", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD"}, instruction


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build takes from the Python registry."""
    folder = tmp_path_factory.mktemp("wheels")
    project = re.search(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    wanted = ["pip", "setuptools", "wheel", "build", *json.loads(project[1])]
    subprocess.run(["/usr/bin/python3", "-m", "pip", "wheel", "-q", "-w", folder, *wanted], check=True)
    return folder


@pytest.fixture(scope="module")
def image(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """The stage that runs."""
    plan = stages()
    folder = tmp_path_factory.mktemp("image")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}
    with roots.root(folder / "runtime") as runtime:
        with roots.root(folder / "build") as build:
            build.copy_in(wheels, WHEELS)
            carry_out(plan["build"], build, {}, offline)
            carry_out(plan["runtime"], runtime, {"build": build}, {})
        # As readOnlyRootFilesystem has it.
        subprocess.run(
            ["nsenter", "-t", str(runtime.holder), "-m", "mount", "-o", "remount,bind,ro", runtime.path], check=True
        )
        yield runtime


def as_the_container() -> list[str]:
    documents = list(yaml.safe_load_all(chart.MANIFEST.read_text()))
    (container,) = chart.of_kind(documents, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    names = "".join(f",+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"])
    return ["setpriv", f"--bounding-set=-all{names}", "--inh-caps=-all", "--no-new-privs"]


def test_the_stages_fit_together():
    plan = stages()
    assert [*plan] == ["build", "runtime", "bcc", "default"]
    assert (plan["default"].base, plan["bcc"].base) == ("runtime", "runtime") and not plan["default"].steps
    assert plan["build"].base == plan["runtime"].base == "${DEBIAN}"
    assert json.loads(plan["runtime"].last("ENTRYPOINT")) == ["stucktrace"]


def test_what_is_in_it(image: Root):
    for absent in ("clang", "gcc", "make", "pip", "pip3"):
        assert image.attempt("sh", "-c", f"command -v {absent}").returncode != 0, absent
    assert image.attempt("test", "-e", "/usr/include/bpf").returncode == 1
    for machine in ("x86_64", "aarch64"):
        found = image.run("find", "/opt/stucktrace", "-name", f"*.{machine}.bpf.o")
        assert found.count("\n") >= 5, found
    # Compiled already: nothing can be written there.
    assert image.run("find", "/opt/stucktrace", "-path", "*/stucktrace/__pycache__/cli.*.pyc").count("\n") == 1


def test_it_explains_a_process_with_what_it_is_granted(image: Root):
    stage = stages()["runtime"]
    env = environment(stage)
    program = json.loads(stage.last("ENTRYPOINT"))
    assert image.attempt("touch", "/etc/written").returncode != 0
    nothing_is_missing(image, *as_the_container(), program=program, env=env)
    (image_config,) = [
        one
        for one in yaml.safe_load_all(chart.MANIFEST.read_text())
        if one["kind"] == "ConfigMap" and "agent.toml" in one["data"]
    ]
    config = image.seen_as("/tmp/agent.toml")
    config.write_text(image_config["data"]["agent.toml"])
    checked = image.run(*program, "agent", "--check-config", "--config", "/tmp/agent.toml", env=env)
    assert "0.0.0.0:9464" in checked


def test_a_deadlock_in_another_tree_is_explained(image: Root, tmp_path: Path):
    stage = stages()["runtime"]
    with roots.root(tmp_path / "target") as other, hung(other) as pid:
        explains(image, pid, *as_the_container(), program=json.loads(stage.last("ENTRYPOINT")), env=environment(stage))


def test_the_stage_with_bcc(image: Root):
    """Last: it changes the tree."""
    plan = stages()
    subprocess.run(["nsenter", "-t", str(image.holder), "-m", "mount", "-o", "remount,bind,rw", image.path], check=True)
    carry_out(plan["bcc"], image, {}, {})
    finds = "from stucktrace.collectors import bcc_node; print(bcc_node.python_with_bcc())"
    found = image.run("/opt/stucktrace/bin/python3", "-c", finds).strip()
    image.run(found, "-c", "import bcc; bcc.BPF")
