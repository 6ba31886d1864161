"""A CPython on musl, as in Alpine's images, which no package mirror here has: Debian's source, compiled with musl-gcc.

Made once, in the cache of trees.py: ten minutes of two CPUs. Without ctypes, ssl and zlib, whose libraries Debian has for
its own C library alone; the modules that it has are part of the program.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from tests.harness.trees import mirror

RELEASE, SOURCE = "bookworm", "python3.11"
STAMP = "1: static modules"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MODULES = """*static*
_bisect _bisectmodule.c
_contextvars _contextvarsmodule.c
_heapq _heapqmodule.c
_opcode _opcode.c
_posixsubprocess _posixsubprocess.c
_queue _queuemodule.c
_random _randommodule.c
_sha512 sha512module.c
_socket socketmodule.c
_struct _struct.c
array arraymodule.c
binascii binascii.c
fcntl fcntlmodule.c
math mathmodule.c
select selectmodule.c
"""
# configure takes the platform's name from --print-multiarch, which musl-gcc answers with glibc's. The kernel's headers
# are the same for every C library.
COMPILER = """#!/bin/sh
case " $* " in *print-multiarch*) echo x86_64-linux-musl; exit 0;; esac
exec musl-gcc -idirafter "{headers}" "$@"
"""


def python() -> tuple[Path, dict[str, str]]:
    """The program, and the environment that shows it its library; made if need be, while others wait."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "stucktrace-trees" / "musl"
    cache.mkdir(parents=True, exist_ok=True)
    stamp, home = cache / "stamp", cache / "home"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != STAMP:
            _make(cache, home)
            stamp.write_text(STAMP)
    return home / "bin" / "python3.11", {"PYTHONHOME": str(home)}


def _make(cache: Path, home: Path) -> None:
    headers, compiler = cache / "headers", cache / "musl-cc"
    headers.mkdir(exist_ok=True)
    for name, place in (("linux", "linux"), ("asm-generic", "asm-generic"), ("asm", "x86_64-linux-gnu/asm")):
        (headers / name).unlink(missing_ok=True)
        (headers / name).symlink_to(Path("/usr/include") / place)
    compiler.write_text(COMPILER.format(headers=headers))
    compiler.chmod(0o755)
    source = _source(cache)
    (source / "Modules" / "Setup.local").write_text(MODULES)
    options = ["--build=x86_64-linux-musl", "--without-ensurepip", "--disable-test-modules"]
    _run(source, "./configure", *options, CC=str(compiler))
    # configure finds glibc's zlib.
    without_zlib = ("MODULE_BINASCII_CFLAGS=", "MODULE_BINASCII_LDFLAGS=")
    _run(source, "make", "-j2", "OPT=-O1 -g", *without_zlib, "python")
    _run(cache, "rm", "-rf", str(home))
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    _run(source, "cp", "python", str(home / "bin" / "python3.11"))
    _run(source, "cp", "-r", "Lib", str(home / "lib" / "python3.11"))
    _run(cache, "rm", "-rf", str(source))


def _source(cache: Path) -> Path:
    """As Debian's archive has it, by its signed lists."""
    lists = cache / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    sources = cache / "sources.list"
    sources.write_text(f"deb-src [signed-by={KEYS}] {mirror()} {RELEASE} main\n")
    apt = ("apt-get", "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-")
    apt = (*apt, "-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root")
    _run(cache, *apt, "update")
    _run(cache, *apt, "source", "--download-only", SOURCE)
    (archive,) = cache.glob("python3.11_*.orig.tar.*")
    _run(cache, "tar", "--extract", "--file", str(archive))
    (folder,) = (entry for entry in cache.glob("Python-3.11*") if entry.is_dir())
    return folder


def _run(folder: Path, *words: str, **environment: str) -> None:
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
