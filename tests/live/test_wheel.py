"""The wheel in an empty environment, used from an empty folder: it does what the source tree does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import command, kernel, namespaces, targets
from tests.harness.installed import Installed, installed
from tests.live.conftest import ENGINES

pytestmark = pytest.mark.xdist_group("wheel")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Installed]:
    with installed() as place:
        yield place


def run(elsewhere: Installed, *args: str | int) -> command.Result:
    return command.run(
        *args, command=elsewhere.command, cwd=elsewhere.empty, env={"PYTHONPATH": "", "PATH": "/usr/sbin:/usr/bin"}
    )


def test_one_importable_name_and_what_it_carries(elsewhere):
    code = "from importlib.metadata import files; print(*map(str, files('stucktrace')), sep='\\n')"
    done = subprocess.run(
        [elsewhere.python, "-c", code], capture_output=True, text=True, cwd=elsewhere.empty, check=True
    )
    names = done.stdout.split()
    assert {name.split("/")[0].split("-")[0] for name in names if not name.startswith("..")} == {"stucktrace"}
    for wanted in (
        "stucktrace/report.schema.json",
        "stucktrace/py.typed",
        "stucktrace/diagnosis/known_issues.json",
        "stucktrace/objects/look.bpf.o",
        "stucktrace/objects/waits.bpf.o",
        "stucktrace/objects/tcp.bpf.o",
    ):
        assert wanted in names
    assert sum("licenses/" in name for name in names) >= 3
    assert not [name for name in names if name.endswith((".c", ".h"))]


def test_it_explains_a_half_open_connection(elsewhere):
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
                result = run(elsewhere, "pid", client.pid, "--json", "--engine", engine)
                assert (result.status, result.stderr) == (1, ""), result
                report = command.Report(json.loads(result.stdout))
                command.validator().validate(report)
                assert report.code == "half-open", report.text()
                assert report["seen"]["engine"] == ("core" if engine == "auto" else "none")
                assert report["threads"][0]["python"], "no Python stack"


def test_the_other_commands(elsewhere):
    assert run(elsewhere, "--version").stdout.startswith("stucktrace ")
    assert run(elsewhere, "pid").status == 0
    assert run(elsewhere, "completion", "bash").status == 0
    doctor = run(elsewhere, "doctor")
    assert doctor.status == 0, doctor
