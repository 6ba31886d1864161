"""Runs the benchmarks named on the command line, or all, and prints one table."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time

from tests import bench

TARGETS_OF_THEIR_OWN = ("__main__", "fuzz", "soak")
"""`make fuzz`, `make soak`."""


def main() -> int:
    names = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name not in TARGETS_OF_THEIR_OWN]
    chosen = [name for name in names if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    if not chosen:
        print(f"no such benchmark; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    for name in chosen:
        begin = time.monotonic()
        rows = importlib.import_module(f"tests.bench.{name}").run()
        print(f"== {name} ({time.monotonic() - begin:.0f} s)")
        cells = [
            (row.what, f"{row.figure:,.4g}" if row.figure < 1000 else f"{row.figure:,.0f}", *row[2:]) for row in rows
        ]
        widths = [max(len(cell[column]) for cell in cells) for column in range(5)]
        for what, figure, *rest in cells:
            line = [what.ljust(widths[0]), figure.rjust(widths[1])]
            line += [text.ljust(width) for text, width in zip(rest, widths[2:], strict=True)]
            print("  ".join(line).rstrip())
    return 0


sys.exit(main())
