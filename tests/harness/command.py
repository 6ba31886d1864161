"""Running the real command and reading its answer: every report is held against the schema."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

COMMAND = Path(sys.executable).with_name("stucktrace")
EXIT_STATUS = {"healthy": 0, "stuck": 1, "unknown": 4, "advice": 5}
TIMEOUT_S = 120


@dataclass
class Result:
    status: int
    stdout: str
    stderr: str


class Report(dict[str, Any]):
    """A report as parsed JSON, with shortcuts."""

    @property
    def verdict(self) -> dict[str, Any]:
        return self["verdict"]  # type: ignore[no-any-return]

    @property
    def code(self) -> str:
        return self["verdict"]["code"]  # type: ignore[no-any-return]

    @property
    def confidence(self) -> str:
        return self["verdict"]["confidence"]  # type: ignore[no-any-return]

    @property
    def summary(self) -> str:
        return self["verdict"]["summary"]  # type: ignore[no-any-return]

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self["findings"]}

    def evidence(self, what: str) -> Any:
        """The value of the verdict's evidence line of that name; None when there is none."""
        return next((line["value"] for line in self.verdict["evidence"] if line["what"] == what), None)

    def text(self) -> str:
        """As a person would read it."""
        from stucktrace.sinks.text import render

        return render(self, verbose=True, width=160)

    def socket(self) -> dict[str, Any]:
        """The socket that the verdict is about."""
        return next(socket for socket in self["sockets"] if socket["fd"] == self.verdict["fd"])

    def outage_s(self) -> float:
        """For how long what the verdict's socket sent has been unacknowledged, by the kernel's figures in the report:
        the last retransmission's age and all the timeouts before it."""
        socket = self.socket()
        rto_s, backoff = socket["rto_s"], socket["backoff"]
        return float(socket["last_send_s"] + rto_s * (1 - 0.5**backoff))


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    from importlib import resources

    schema = json.loads(resources.files("stucktrace").joinpath("report.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def run(
    *args: str | int,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    timeout: float = TIMEOUT_S,
    command: Path = COMMAND,
    cwd: Path | None = None,
) -> Result:
    """The installed command with these arguments."""
    done = subprocess.run(
        [*prefix, str(command), *map(str, args)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
    )
    result = Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    assert "Traceback" not in result.stderr + result.stdout, result.stderr + result.stdout
    return result


def explain(pid: int, *args: str | int, **options: Any) -> Report:
    """`stucktrace pid PID --json`, validated; its exit status has to follow the worst class in it."""
    result = run("pid", pid, "--json", *args, **options)
    assert result.stdout.count("\n") == 1, f"status {result.status}: {result.stdout}{result.stderr}"
    report = Report(json.loads(result.stdout))
    validator().validate(report)
    classes = {report.verdict["class"], *(child["verdict"]["class"] for child in report["children"])}
    worst = next((name for name in ("stuck", "unknown", "advice", "healthy") if name in classes), "healthy")
    assert result.status == EXIT_STATUS[worst], f"status {result.status} for {classes}: {result.stderr}"
    return report


def check(pid: int, code: str, *args: str | int, confidence: str | None = None, **options: Any) -> Report:
    """`explain`, with this verdict; on another one the failure shows what a person would have read."""
    report = explain(pid, *args, **options)
    if report.code != code or (confidence and report.confidence != confidence):
        raise AssertionError(f"wanted {code} {confidence or ''}, got:\n{report.text()}")
    return report
