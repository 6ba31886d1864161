"""The command as a user meets it: what it prints and where, which status it ends with, and stdouts that do not take it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import command, kernel, targets

READY = "import os, socket, threading, time; os.write(int(os.environ['READY_FD']), b'ready\\n');"
WAITING = READY + "threading.Event().wait()"
SECRET = """
import os, threading
def handle(password, url, number):
    os.write(int(os.environ['READY_FD']), b'ready\\n')
    threading.Event().wait()
handle("hunter2", "amqp://guest:hunter2@broker/", 4711)
"""


@pytest.fixture
def waiting() -> Iterator[targets.Target]:
    with targets.start([sys.executable, "-c", WAITING]) as target:
        kernel.wait_for_call(target.pid, "futex")
        yield target


def test_version_and_help():
    from stucktrace import __version__

    assert command.run("--version") == command.Result(0, f"stucktrace {__version__}\n", "")
    for args in (["--help"], ["-h"], ["pid", "--help"], ["doctor", "--help"], ["completion", "--help"]):
        result = command.run(*args)
        assert (result.status, result.stderr) == (0, "")
        assert "Usage: stucktrace" in result.stdout
    text = command.run("pid", "--help").stdout
    for option in (
        "--json",
        "--verbose",
        "--native",
        "--locals",
        "--engine",
        "--sample",
        "--stuck-after",
        "Exit status",
    ):
        assert option in text


def test_without_a_command_it_is_a_usage_error():
    for args in ([], ["nonsense"], ["completion", "tcsh"], ["doctor", "extra"]):
        result = command.run(*args)
        assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1), result


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str):
    result = command.run("completion", shell)
    assert result.status == 0
    assert "_STUCKTRACE_COMPLETE" in result.stdout


def test_completion_works_in_bash():
    script = command.run("completion", "bash").stdout
    typed = f'{script}\nCOMP_WORDS=(stucktrace pid --en); COMP_CWORD=2; _stucktrace_completion stucktrace; echo "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{command.COMMAND.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "--engine\n", done


def test_completion_offers_the_processes_there_are(waiting: targets.Target):
    typed = {"_STUCKTRACE_COMPLETE": "bash_complete", "COMP_WORDS": f"stucktrace pid {waiting.pid}", "COMP_CWORD": "2"}
    result = command.run(env=typed)
    assert (result.status, result.stderr) == (0, "")
    assert f"plain,{waiting.pid}" in result.stdout.splitlines()


def test_as_a_module(waiting: targets.Target):
    done = subprocess.run(
        [sys.executable, "-m", "stucktrace", "pid", str(waiting.pid)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_healthy_process_as_text(waiting: targets.Target):
    result = command.run("pid", waiting.pid)
    assert (result.status, result.stderr) == (0, "")
    first = result.stdout.splitlines()[0]
    assert re.match(rf"(idle|waiting|working)  pid {waiting.pid}\b", first), first
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


@pytest.mark.parametrize("engine", ["auto", "core", "none"])
def test_the_report_says_how_it_was_made(waiting: targets.Target, engine: str):
    report = command.explain(waiting.pid, "--engine", engine)
    assert report["seen"]["engine"] == ("none" if engine == "none" else "core")
    assert report["seen"]["hooks"]["threads"] == ("/proc" if engine == "none" else "iter/task")
    assert report["seen"]["missing"] == []
    assert report["seen"]["lost_records"] == 0
    assert report["timings_ms"]["total"] > 0
    assert {"process", "threads", "python", "diagnosis"} <= set(report["timings_ms"])


def test_no_window_where_the_kernels_ages_decide(waiting: targets.Target):
    report = command.explain(waiting.pid, "--sample", "60")
    assert report["timings_ms"].get("window", 0.0) == 0.0


def test_a_window_for_a_running_thread_and_its_length_is_an_option():
    with targets.start([sys.executable, "-c", READY + "\nwhile True: pass"]) as target:
        report = command.check(target.pid, "working", "--sample", "0.7")
        assert report["timings_ms"]["window"] >= 700
        report = command.explain(target.pid, "--sample", "0")
        assert report["timings_ms"].get("window", 0.0) == 0.0


def test_several_pids_one_object_a_line_and_the_worst_status(waiting: targets.Target):
    with targets.start([sys.executable, "-c", WAITING]) as other:
        os.kill(other.pid, 19)
        kernel.wait_for_state(other.pid, "T")
        result = command.run("pid", waiting.pid, other.pid, "--json")
        assert result.status == 1
        reports = [json.loads(line) for line in result.stdout.splitlines()]
        for report in reports:
            command.validator().validate(report)
        assert [report["process"]["pid"] for report in reports] == [waiting.pid, other.pid]
        assert [report["verdict"]["class"] for report in reports] == ["healthy", "stuck"]
        text = command.run("pid", waiting.pid, other.pid)
        assert text.status == 1
        assert re.search(rf"^\S+.*pid {waiting.pid}\b[\s\S]*\n\n\S+.*pid {other.pid}\b", text.stdout), text.stdout


def test_locals_only_when_asked_and_without_secrets(tmp_path: Path):
    program = tmp_path / "secret.py"
    program.write_text(SECRET)
    with targets.start([sys.executable, str(program)]) as target:
        kernel.wait_for_call(target.pid, "futex")
        for options in ([], ["-v"], ["--json"]):
            text = command.run("pid", target.pid, *options).stdout
            assert "4711" not in text and "hunter2" not in text
        for options in (["-v"], ["--json"]):
            text = command.run("pid", target.pid, "--locals", *options).stdout
            assert "4711" in text and "hunter2" not in text


def test_native_frames(waiting: targets.Target):
    report = command.explain(waiting.pid, "--native")
    assert report["threads"][0]["native"] and report["threads"][0]["python"]
    assert command.explain(waiting.pid)["threads"][0]["native"] == []


def test_without_a_pid_it_lists_what_could_be_looked_at(waiting: targets.Target):
    result = command.run("pid")
    assert (result.status, result.stderr) == (0, "")
    assert re.search(rf"\b{waiting.pid}\b", result.stdout)
    lines = [json.loads(line) for line in command.run("pid", "--json").stdout.splitlines()]
    assert waiting.pid in {line["pid"] for line in lines}


def test_a_full_disk(waiting: targets.Target):
    for options in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [command.COMMAND, "pid", str(waiting.pid), *options],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
            )
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done
        assert "No space left" in done.stderr


@pytest.mark.parametrize("args", ["pid {pid}", "pid", "doctor", "--version", "pid --help", "completion bash"])
def test_a_closed_stdout(waiting: targets.Target, args: str):
    shell = f"exec {command.COMMAND} {args.format(pid=waiting.pid)} >&-"
    done = subprocess.run(["bash", "-c", shell], stderr=subprocess.PIPE, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done


def test_all_streams_closed(waiting: targets.Target):
    shell = f"exec {command.COMMAND} pid {waiting.pid} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", shell], timeout=120).returncode == 3


def test_a_reader_that_leaves(waiting: targets.Target):
    for args in (f"pid -v {waiting.pid}", "doctor", "pid"):
        shell = f"{command.COMMAND} {args} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120)
        assert done.stderr == ""
        # Ended by SIGPIPE, or done before the reader left.
        assert int(done.stdout) in {0, 141}


def test_a_plain_c_locale(tmp_path: Path):
    script = tmp_path / "größe.py"
    script.write_text(WAITING)
    with targets.start([sys.executable, str(script), "日本語", "\udcff"]) as target:
        for environment in (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            {"PYTHONIOENCODING": "ascii"},
        ):
            for options in ([], ["-v"], ["--json"]):
                result = command.run("pid", target.pid, *options, env=environment)
                assert (result.status, result.stderr) == (0, ""), result


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour_on_a_terminal_only(waiting: targets.Target, environment: dict[str, str], coloured: bool):
    main, terminal = pty.openpty()
    rest = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "TERM"}}
    done = subprocess.Popen(
        [command.COMMAND, "pid", str(waiting.pid)], stdout=terminal, stderr=terminal, env={**rest, **environment}
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:
        # EIO: the terminal's last user has left.
        pass
    os.close(main)
    assert done.wait(60) == 0
    assert (b"\x1b[" in shown) is coloured
