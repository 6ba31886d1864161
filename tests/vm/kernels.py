"""Debian's own kernels, unpacked and never installed.

A release's newest kernel comes by apt, with lists and signatures of its own beside the machine's, from the mirror that
this machine's apt uses; it is unpacked once in a cache outside the repository. Later runs ask no mirror.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.harness import trees

RELEASES = {"bullseye": "5.10", "bookworm": "6.1", "trixie": "6.12"}
"""Release -> its kernel."""
STAMP = "1: image, modules.dep, headers"
"""What was unpacked otherwise is unpacked anew."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Kernel:
    release: str
    architecture: str
    """As Debian calls it."""
    version: str
    """As uname says it."""
    root: Path
    """Where the image, its modules and its headers are unpacked, as if it were /."""

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.version

    @property
    def headers(self) -> Path:
        """What /lib/modules/VERSION/build would point to."""
        return self.root / "usr/src" / f"linux-headers-{self.version}"

    def with_needs(self, *names: str) -> list[Path]:
        """The files of these modules and of all that they need, in the order in which they load; built-in ones have none."""
        needs = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needed = line.partition(":")
            # depmod lists what is needed last-loaded first.
            needs[_name(path)] = [*reversed(needed.split()), path]
        files = [path for name in names for path in needs.get(name, ())]
        return [self.modules / path for path in dict.fromkeys(files)]


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def get(release: str, architecture: str = "amd64") -> Kernel:
    """The release's kernel, which is fetched if need be; who comes meanwhile waits."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "stucktrace-kernels"
    cache.mkdir(parents=True, exist_ok=True)
    name = release if architecture == "amd64" else f"{release}-{architecture}"
    home, stamp = cache / name, cache / f"{name}.stamp"
    with open(cache / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != STAMP:
            stamp.unlink(missing_ok=True)
            _fetch(release, architecture, home)
            stamp.write_text(STAMP)
    (modules,) = (home / "root/lib/modules").iterdir()
    return Kernel(release, architecture, modules.name, home / "root")


def _fetch(release: str, architecture: str, home: Path) -> None:
    subprocess.run(["rm", "-rf", home], check=True)
    root, lists, archives = home / "root", home / "lists", home / "archives"
    for folder in (root, lists / "partial", archives / "partial"):
        folder.mkdir(parents=True)
    sources = home / "sources.list"
    sources.write_text(f"deb [arch={architecture} signed-by={KEYRING}] {trees.mirror()} {release} main\n")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": home,
        "Dir::Cache::Archives": archives,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "update"])
    image = _newest(options, f"linux-image-{architecture}", rf"linux-image-[\w.+-]+-{architecture}")
    headers = _newest(options, f"linux-headers-{architecture}", rf"linux-headers-[\w.+-]+-{architecture}")
    common = _newest(options, headers, r"linux-headers-[\w.+-]+-common")
    _run(["apt-get", *options, "download", image, headers, common], archives)
    for package in archives.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(root)])
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    (modules,) = (root / "lib/modules").iterdir()
    _run(["depmod", "-b", str(root), modules.name])
    # The headers link themselves beside the modules; a machine gets that link when it asks for headers.
    for link in ("build", "source"):
        (modules / link).unlink(missing_ok=True)
    for done in (lists, archives):
        _run(["rm", "-rf", str(done)])


def _newest(options: list[str], package: str, needed: str) -> str:
    """The package that this one depends on and whose name fits."""
    shown = _run(["apt-cache", *options, "depends", "--no-recommends", "--no-suggests", package])
    found = re.search(rf"Depends: ({needed})$", shown, re.MULTILINE)
    assert found, f"{package} names no {needed}:\n{shown}"
    return found[1]


def _run(command: list[str], cwd: Path | None = None) -> str:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
