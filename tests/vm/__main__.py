"""Runs one command under another kernel: python -m tests.vm RELEASE [--headers] [--no-btf] -- COMMAND..."""

from __future__ import annotations

import argparse
import os
import sys

from tests.vm import kernels, machine


def main() -> int:
    words = sys.argv[1:]
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(
        prog="tests.vm", description=__doc__, usage="%(prog)s RELEASE [options] -- COMMAND..."
    )
    parser.add_argument("release", choices=kernels.RELEASES)
    parser.add_argument("--headers", action="store_true", help="the kernel's headers where its package puts them")
    parser.add_argument("--no-btf", action="store_true", help="no /sys/kernel/btf, as on a kernel built without")
    parser.add_argument("--deadline", type=float, default=900.0, metavar="S", help="the guest is ended then (900 s)")
    asked = parser.parse_args(own)
    if not command:
        parser.error("no command: put one behind --")
    ended = machine.run(
        asked.release, command,
        headers=asked.headers, btf=not asked.no_btf, deadline_s=asked.deadline, output=sys.stdout.buffer,
    )  # fmt: skip
    if ended.status is not None:
        return ended.status
    print(f"no end within {ended.seconds:.0f} s; the kernel's last lines:\n{ended.last_lines()}", file=sys.stderr)
    return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
