"""Is it Python, and which: every CPython here, renamed, deleted, hidden from us; and what only looks like one."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from stucktrace.collectors import interpreter

from tests.harness import pythons

SLEEP = "import time; print('ready'); time.sleep(600)"


@pytest.mark.parametrize("python", pythons.interpreters(), ids=pythons.name_of)
def test_the_version_is_what_the_interpreter_says(python):
    said = subprocess.run(
        [python, "-c", "import platform, sys; print(platform.python_version(), sys.executable)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    with pythons.run(SLEEP, python=python) as target:
        found = interpreter.find(target.pid)
    assert found is not None
    assert found.version == said[0]
    assert os.path.realpath(said[1]) == found.executable
    assert found.minor == tuple(int(part) for part in said[0].split(".")[:2])
    assert not found.free_threaded


def test_a_renamed_and_deleted_interpreter_is_still_one(tmp_path):
    copy = tmp_path / "worker"
    shutil.copy("/usr/bin/python3", copy)
    with pythons.run(SLEEP, python=str(copy)) as target:
        copy.unlink()
        found = interpreter.find(target.pid)
    assert found is not None and found.source == "symbols"
    assert found.version.startswith("3.") and found.executable == str(copy)


EMBEDS = r"""
#include <Python.h>
int main(void) {
    Py_Initialize();
    return PyRun_SimpleString("import sys, time; sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(600)");
}
"""


def test_a_program_that_embeds_python_is_python(tmp_path):
    """As uwsgi or mod_wsgi: the interpreter is a library in a program of another name."""
    source, program = tmp_path / "server.c", tmp_path / "server"
    source.write_text(EMBEDS)
    flags = subprocess.check_output(
        ["/usr/bin/python3-config", "--includes", "--ldflags", "--embed"], text=True
    ).split()
    subprocess.run(["gcc", str(source), "-o", str(program), *flags], check=True)
    child = subprocess.Popen([str(program)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        found = interpreter.find(child.pid)
    finally:
        child.kill()
        child.communicate()
    assert found is not None
    assert found.executable == str(program)
    assert found.version == subprocess.check_output(["/usr/bin/python3", "--version"], text=True).split()[1]


def test_a_name_alone_makes_no_python():
    child = subprocess.Popen(["python3.11", "600"], executable="/bin/sleep")
    try:
        pythons.until(lambda: pythons.in_call(child.pid, "clock_nanosleep"), "sleep sleeps")
        assert interpreter.find(child.pid) is None
    finally:
        child.kill()
        child.wait()


def test_a_kernel_thread_is_none():
    assert interpreter.find(2) is None


def test_a_process_that_is_gone():
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    with pytest.raises(ProcessLookupError):
        interpreter.find(child.pid)


def test_a_zombie_is_none():
    child = subprocess.Popen(["/bin/true"])
    try:
        pythons.until(lambda: pythons.process_of(child.pid).state == "Z", "a zombie")
        assert interpreter.find(child.pid) is None
    finally:
        child.wait()


def test_without_permission_the_command_line_tells():
    with pythons.run(SLEEP, python="/usr/bin/python3") as target:
        reader, writer = os.pipe()
        helper = os.fork()
        if helper == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                found = interpreter.find(target.pid)
                os.write(writer, repr((found.source, found.version) if found else None).encode())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            os._exit(0)
        os.close(writer)
        answer = os.read(reader, 1000).decode()
        os.close(reader)
        os.waitpid(helper, 0)
    assert answer == "('command', '3')" or answer == "('command', '')"


def test_it_is_quick():
    """The answer is one of many on the way to a verdict in 300 ms; an order of magnitude is left for a busy machine."""
    with pythons.run(SLEEP, python=sys.executable) as target:
        best = 1.0
        for _ in range(5):
            started = time.perf_counter()
            interpreter.find(target.pid)
            best = min(best, time.perf_counter() - started)
    assert best < 0.1
