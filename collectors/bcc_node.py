"""What engine bcc needs of the node: bcc for some Python, the running kernel's headers, the initial PID namespace.

Asked of files alone, so it takes no time; what is missing is named with the package that brings it here.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from stucktrace.collectors import procfs
from stucktrace.facts import Missing

WHAT = "BPF compiled here (bcc)"
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
"""As the programs call those that they are written for."""
_KHEADERS = "/sys/kernel/kheaders.tar.xz"
_PACKAGES = ("lib/python3/dist-packages", "lib/python3*/site-packages", "lib64/python3*/site-packages")
"""Where distributions put bcc, below the prefix of their Python."""
_NODE = Path("/proc/1/root")


def why_not() -> Missing | None:
    """None: it may well work."""
    if platform.machine() not in ARCHITECTURES:
        return Missing(WHAT, f"there are no BPF programs for {platform.machine()}", "x86_64 or aarch64 is needed")
    if procfs.own_pids():
        because = "stucktrace runs in a PID namespace of its own, and without BTF it cannot tell whose ids it is given"
        return Missing(WHAT, because, "hostPID: true in the pod, or run on the node")
    if python_with_bcc() is None:
        return Missing(WHAT, "bcc is not installed", install(bcc=True, headers=not has_headers()))
    if not has_headers():
        because = f"the headers of kernel {os.uname().release} are not installed"
        if _is_dangling():
            because = f"/lib/modules/{os.uname().release}/build leads nowhere: the headers are not mounted here"
        return Missing(WHAT, because, install(bcc=False, headers=True))
    return None


def python_with_bcc() -> str | None:
    """The interpreter that bcc is installed for; None: none. The package of that name on PyPI is another."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/libexec/platform-python", shutil.which("python3")):
        if python and Path(python).exists():
            prefix = Path(python).parents[1]
            if any(_is_bcc(folder) for below in _PACKAGES for folder in prefix.glob(f"{below}/bcc")):
                return python
    return None


def _is_bcc(folder: Path) -> bool:
    return (folder / "libbcc.py").exists()


def has_headers() -> bool:
    """As bcc looks for them."""
    if os.environ.get("BCC_KERNEL_SOURCE"):
        return True
    found = any((_modules() / folder / "include/linux/kconfig.h").exists() for folder in ("build", "source"))
    return found or Path(_KHEADERS).exists()


def _is_dangling() -> bool:
    build = _modules() / "build"
    return build.is_symlink() and not build.exists()


def _modules() -> Path:
    return Path("/lib/modules") / os.uname().release


def install(*, bcc: bool, headers: bool) -> str:
    """What to do, in the words of the distribution: bcc belongs here, the headers to the node."""
    node = _NODE if _in_container() else Path("/")
    here, there = (_PACKAGES_OF[_family(root)] for root in (Path("/"), node))
    own = (here.bcc,) if bcc else ()
    its = (there.headers.format(release=os.uname().release, flavour=os.uname().release.rpartition("-")[2]),)
    if headers and any(_modules().glob("kernel/kernel/kheaders.ko*")):
        steps = [here.command(own), "modprobe kheaders"]
    elif headers and node != Path("/"):
        steps = [here.command(own), f"on the node {there.command(its)}", "mount its /lib/modules and /usr/src here"]
    else:
        steps = [here.command((*own, *(its if headers else ())))]
    return ", ".join(step for step in steps if step)


class _Packages(NamedTuple):
    tool: str
    bcc: str
    headers: str

    def command(self, packages: tuple[str, ...]) -> str:
        if not packages:
            return ""
        return f"{self.tool} install {' '.join(packages)}" if self.tool else f"install {' and '.join(packages)}"


_PACKAGES_OF = {
    "debian": _Packages("apt", "python3-bpfcc", "linux-headers-{release}"),
    "fedora": _Packages("dnf", "python3-bcc", "kernel-devel-{release}"),
    "suse": _Packages("zypper", "python3-bcc", "kernel-{flavour}-devel"),
    "": _Packages("", "iovisor's bcc for Python", "the headers of kernel {release}"),
}
_FAMILIES = {
    "ubuntu": "debian",
    "rhel": "fedora",
    "centos": "fedora",
    "amzn": "fedora",
    "sles": "suse",
    "opensuse": "suse",
}
"""Word of os-release -> the distribution that it follows."""


def _family(root: Path) -> str:
    """By ID and ID_LIKE of os-release(5)."""
    for path in ("etc/os-release", "usr/lib/os-release"):
        try:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        return family_of(text)
    return ""


def family_of(os_release: str) -> str:
    """A key of `_PACKAGES_OF`."""
    for line in os_release.splitlines():
        name, _, value = line.partition("=")
        if name in ("ID", "ID_LIKE"):
            for word in value.strip("\"'").split():
                family = _FAMILIES.get(word.partition("-")[0], word)
                if family in _PACKAGES_OF:
                    return family
    return ""


def _in_container() -> bool:
    """We see another tree than the node's first process, as far as that may be asked."""
    try:
        return not Path("/").samefile(_NODE)
    except OSError:
        return False
