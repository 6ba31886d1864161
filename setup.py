"""Compiles the BPF programs beside their sources, for every architecture: one wheel serves all nodes."""

import re
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
BPF_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
"""`platform.machine()` -> as libbpf's headers call it."""
FLAGS = ("-O2", "-g", "-Wall", "-Werror", "-mcpu=v3")


def compile_bpf() -> None:
    """Compiles what is older than any source, for programs include each other; what is included is no object itself."""
    sources = sorted((ROOT / "bpf").glob("*.bpf.c"))
    included = {name for source in sources for name in re.findall(r'#include "(\w+\.bpf\.c)"', source.read_text())}
    newest = max(path.stat().st_mtime for path in (ROOT / "bpf").glob("*.[ch]"))
    wanted = set()
    for source in sources:
        if source.name in included:
            continue
        for machine, arch in BPF_ARCHITECTURES.items():
            target = source.with_name(f"{source.name.removesuffix('.bpf.c')}.{machine}.bpf.o")
            wanted.add(target)
            if target.exists() and target.stat().st_mtime > newest:
                continue
            command = ("clang", "-target", "bpf", f"-D__TARGET_ARCH_{arch}", *FLAGS, "-c", source, "-o", target)
            subprocess.run(command, check=True)
            subprocess.run(["llvm-strip", "-g", target], check=True)
    for left in set((ROOT / "bpf").glob("*.bpf.o")) - wanted:
        left.unlink()


class BuildWithBpf(build_py):
    def run(self) -> None:
        compile_bpf()
        super().run()


setup(cmdclass={"build_py": BuildWithBpf})
