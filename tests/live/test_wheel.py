"""The wheel in an empty environment, used from an empty folder: it does what the source tree does."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.harness import command, installed, kernel, namespaces, targets
from tests.harness.installed import Installed
from tests.live.conftest import ENGINES

pytestmark = pytest.mark.xdist_group("wheel")


def run(wheel: Installed, *args: str | int) -> command.Result:
    return command.run(
        *args, command=wheel.command, cwd=wheel.empty, env={"PYTHONPATH": "", "PATH": "/usr/sbin:/usr/bin"}
    )


def test_one_importable_name_and_what_it_carries(wheel):
    code = "from importlib.metadata import files; print(*map(str, files('stucktrace')), sep='\\n')"
    done = subprocess.run([wheel.python, "-c", code], capture_output=True, text=True, cwd=wheel.empty, check=True)
    names = done.stdout.split()
    assert {name.split("/")[0].split("-")[0] for name in names if not name.startswith("..")} == {"stucktrace"}
    for wanted in (
        "stucktrace/report.schema.json",
        "stucktrace/py.typed",
        "stucktrace/diagnosis/known_issues.json",
        *(
            f"stucktrace/objects/{name}.{machine}.bpf.o"
            for name in ("inflight", "lifecycle", "look", "tcp", "trouble", "waits")
            for machine in ("x86_64", "aarch64")
        ),
    ):
        assert wanted in names
    # One for every Linux: it carries no machine code but BPF's, and that for each architecture.
    assert wheel.wheel.name.endswith("-py3-none-any.whl")
    assert sum("licenses/" in name for name in names) >= 3
    # bcc compiles where it is used.
    sources = {path.name for path in (installed.ROOT / "bpf").glob("*.[ch]")}
    assert {name.rpartition("/")[2] for name in names if name.endswith((".c", ".h"))} == sources


def test_it_explains_a_half_open_connection(wheel):
    with namespaces.pair() as pair:
        with (
            targets.start("http_holder.py", "reads", pair.there_address, netns=pair.there) as holder,
            targets.start(
                "http_client.py", "http.client", f"http://{pair.there_address}:{holder.said}/", "later", netns=pair.here
            ) as client,
        ):
            pair.cut()
            client.go()
            kernel.wait_for_unacked(f"{pair.there_address}:{holder.said}", 9, pair.here)
            for engine in ENGINES:
                result = run(wheel, "pid", client.pid, "--json", "--engine", engine)
                assert (result.status, result.stderr) == (1, ""), result
                report = command.Report(json.loads(result.stdout))
                command.validator().validate(report)
                assert report.code == "half-open", report.text()
                assert report["seen"]["engine"] == ("core" if engine == "auto" else "none")
                assert report["threads"][0]["python"], "no Python stack"


def test_the_other_commands(wheel):
    assert run(wheel, "--version").stdout.startswith("stucktrace ")
    assert run(wheel, "pid").status == 0
    assert run(wheel, "completion", "bash").status == 0
    doctor = run(wheel, "doctor")
    assert doctor.status == 0, doctor
