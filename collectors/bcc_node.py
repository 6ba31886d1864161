"""What engine bcc needs of the node: bcc for some Python, the running kernel's headers, the initial PID namespace.

Asked of files alone, so it takes no time; what is missing is named with the package that brings it here.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from stucktrace.facts import Missing

WHAT = "BPF compiled here (bcc)"
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Its inode number in every kernel (PROC_PID_INIT_INO)."""
_KHEADERS = "/sys/kernel/kheaders.tar.xz"
_PACKAGES = ("lib/python3/dist-packages", "lib/python3*/site-packages", "lib64/python3*/site-packages")
"""Where distributions put bcc, below the prefix of their Python."""
_DEBIAN, _FEDORA, _SUSE = {"debian", "ubuntu"}, {"fedora", "rhel", "centos", "amzn"}, {"suse", "opensuse", "sles"}


def why_not() -> Missing | None:
    """None: it may well work."""
    if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PID_NAMESPACE:
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
    modules = Path("/lib/modules") / os.uname().release
    found = any((modules / folder / "include/linux/kconfig.h").exists() for folder in ("build", "source"))
    return found or Path(_KHEADERS).exists()


def _is_dangling() -> bool:
    build = Path("/lib/modules") / os.uname().release / "build"
    return build.is_symlink() and not build.exists()


def install(*, bcc: bool, headers: bool) -> str:
    """What to do, with this distribution's own names."""
    family, release = _family(), os.uname().release
    if family & _DEBIAN:
        packages, tool = ("python3-bpfcc", f"linux-headers-{release}"), "apt install"
    elif family & _FEDORA:
        packages, tool = ("python3-bcc", f"kernel-devel-{release}"), "dnf install"
    elif family & _SUSE:
        packages, tool = ("python3-bcc", f"kernel-{release.rpartition('-')[2]}-devel"), "zypper install"
    else:
        packages, tool = ("iovisor's bcc for Python", f"the headers of kernel {release}"), "install"
    wanted = [package for package, needed in zip(packages, (bcc, headers), strict=True) if needed]
    remedy = f"{tool} {' '.join(wanted) if tool != 'install' else ' and '.join(wanted)}"
    if headers:
        remedy += "; or modprobe kheaders, where the kernel has it"
        if Path("/.dockerenv").exists() or os.environ.get("KUBERNETES_SERVICE_HOST"):
            remedy += "; in a container mount the node's /lib/modules and /usr/src too"
    return remedy


def _family() -> set[str]:
    """ID and ID_LIKE of os-release(5)."""
    words: set[str] = set()
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            name, _, value = line.partition("=")
            if name in ("ID", "ID_LIKE"):
                words.update(word.split("-")[0] for word in value.strip("\"'").split())
        break
    return words
