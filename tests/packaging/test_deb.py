"""The Debian package: what lintian says of it, and what it does in a Debian 12 that had nothing but python3."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.cli import COMMANDS

from tests.harness import roots
from tests.harness.roots import Root
from tests.packaging.conftest import explains, hung, nothing_is_missing

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "packaging" / "debian"
HOME = "/usr/lib/stucktrace"


@pytest.fixture(scope="module")
def package() -> Path:
    """Made by `make deb`, here and now."""
    began = subprocess.run(["date", "+%s"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run(["make", "-s", "deb"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (found,) = (path for path in (ROOT / "dist").glob("*.deb") if path.stat().st_mtime >= int(began))
    return found


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """An empty Debian 12 with the package, by apt alone."""
    with roots.root(tmp_path_factory.mktemp("deb")) as root:
        root.copy_in(package, f"/tmp/{package.name}")
        root.install(f"/tmp/{package.name}")
        yield root


def test_lintian_finds_nothing(package: Path):
    """But what stucktrace.lintian-overrides gives a reason for."""
    # It does not like to be root.
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    folder.chmod(0o755)
    shutil.copy(package, folder)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/nonexistent")
    checked = [*user, "lintian", "--fail-on=error,warning,info", folder / package.name]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=900, cwd="/")
    shutil.rmtree(folder)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_explains_a_process(installed: Root):
    assert "3.11" in installed.run("dpkg-query", "-W", "-f", "${Depends}", "stucktrace")
    nothing_is_missing(installed, env={})
    with hung(installed) as pid:
        explains(installed, pid, env={})


def test_what_is_installed(installed: Root):
    # Nothing was changed since it was unpacked, and every module is compiled.
    assert installed.run("dpkg", "--verify", "stucktrace") == ""
    compiled = installed.run("find", HOME, "-name", "cli.cpython-311.pyc", "-path", "*/stucktrace/*")
    assert compiled.count("\n") == 1
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert installed.run("stucktrace", "--version") == f"stucktrace {version}\n"
    assert installed.run("dpkg-query", "-W", "-f", "${Version}", "stucktrace") == version
    # Debian's own libraries are not looked at, nor what another user leaves in a folder.
    paths = installed.run(f"{HOME}/bin/python3", "-c", "import sys; print(*sys.path, sep='\\n')").split()
    assert not [path for path in paths if "dist-packages" in path]
    assert installed.attempt("grep", "-rlIF", str(ROOT), HOME).returncode == 1, "the build's path is in it"
    checked = installed.run("stucktrace", "agent", "--check-config")
    assert "default" in checked
    unit = installed.seen_as("/lib/systemd/system/stucktrace-agent.service").read_text()
    assert unit == (ROOT / "packaging" / "systemd" / "stucktrace-agent.service").read_text()
    assert not installed.seen_as("/etc/systemd/system/multi-user.target.wants/stucktrace-agent.service").exists()


def test_every_library_has_its_licence(installed: Root):
    names = installed.run("sh", "-c", f"cd {HOME}/lib/python3.11/site-packages && ls -d *.dist-info").split()
    copyright_of = (DEBIAN / "copyright").read_text()
    for name in names:
        stem = name.split("-")[0]
        assert stem == "stucktrace" or f"/{stem}*" in copyright_of, stem


def test_the_manual_knows_every_command():
    manual = (DEBIAN / "stucktrace.1").read_text().replace("\\-", "-")
    for name in COMMANDS:
        assert re.search(rf"^\.(BI \"|B ){name}\b", manual, re.MULTILINE), name


def test_it_leaves_nothing(installed: Root):
    installed.run("apt-get", "purge", "-q", "-y", "stucktrace")
    for path in (HOME, "/usr/bin/stucktrace", "/etc/stucktrace", "/lib/systemd/system/stucktrace-agent.service"):
        assert installed.attempt("test", "-e", path).returncode == 1, path
