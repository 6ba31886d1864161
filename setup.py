"""Compiles the BPF programs beside their sources and tags the wheel with the architecture they were compiled for."""

import platform
import re
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
BPF_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}


def compile_bpf() -> None:
    """Compiles what is older than any source, for programs include each other; what is included is no object itself."""
    arch = BPF_ARCHITECTURES[platform.machine()]
    sources = sorted((ROOT / "bpf").glob("*.bpf.c"))
    included = {name for source in sources for name in re.findall(r'#include "(\w+\.bpf\.c)"', source.read_text())}
    newest = max(path.stat().st_mtime for path in (ROOT / "bpf").glob("*.[ch]"))
    for source in sources:
        target = source.with_suffix(".o")
        if source.name in included:
            target.unlink(missing_ok=True)
            continue
        if target.exists() and target.stat().st_mtime > newest:
            continue
        subprocess.run(
            [
                "clang",
                "-target",
                "bpf",
                f"-D__TARGET_ARCH_{arch}",
                "-O2",
                "-g",
                "-Wall",
                "-Werror",
                "-mcpu=v3",
                "-c",
                source,
                "-o",
                target,
            ],
            check=True,
        )
        subprocess.run(["llvm-strip", "-g", target], check=True)


class BuildWithBpf(build_py):
    def run(self) -> None:
        compile_bpf()
        super().run()


class WheelForThisArchitecture(bdist_wheel):
    """Pure Python beside objects of one architecture: any Python 3, this platform."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", f"linux_{platform.machine()}"


setup(cmdclass={"build_py": BuildWithBpf, "bdist_wheel": WheelForThisArchitecture})
