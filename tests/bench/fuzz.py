"""A coverage-guided fuzzer (atheris) on every parser of foreign data, and inspections of hung processes whose every read
may come back changed.

`python -m tests.bench.fuzz SECONDS WORDS`: so long for each parser and each process, of those whose name has a word of
WORDS. What makes one fail is kept in a folder and named; the status is 1 then.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.harness import corruption, kernel, targets

ONE = "--one"
LONGEST_S = 10
"""For one input."""
SHARES = (0.0005, 0.002, 0.01, 0.05, 0.3)
"""Of the reads of an inspection that are changed."""
MEMORY = (
    ("stuck_locks.py", "behind_a_silent_web_server"),
    ("stuck_locks.py", "locks_crossed"),
    ("stuck_pools.py", "killed_apply"),
    ("stuck_pools.py", "every_thread"),
    ("stuck_connections.py", "in_blocks"),
    ("stuck_process_locks.py", "recursive_holder_killed", "fork"),
    ("stuck_loops.py", "asyncio_in_a_thread"),
    ("stuck_loops.py", "gevent_hub"),
    ("greenlets.py", "held_by_a_greenlet"),
    ("stuck_pipes.py", "stopped_reader"),
)


def fuzz_one(name: str, seconds: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process, with another status than 0 when an input failed."""
    import atheris

    with atheris.instrument_imports(include=["stucktrace"]):
        parsers = importlib.import_module("tests.harness.parsers")
    parser = next(each for each in parsers.PARSERS if each.name == name)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, sample in enumerate(parser.samples()):
        (corpus / str(number)).write_bytes(sample)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            mutated: bytes = atheris.Mutate(data, most)
            return mutated
        return corruption.mutate_any(data, chance)[:most]

    options = [f"-max_total_time={seconds}", f"-timeout={LONGEST_S}", f"-artifact_prefix={folder}/", "-max_len=65536",
               "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
    atheris.Setup(["fuzz", *options, str(corpus)], lambda data: parsers.check(parser, data), custom_mutator=mutate)
    atheris.Fuzz()


def fuzz_parser(name: str, seconds: int, folder: Path) -> tuple[bool, str]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.fuzz", ONE, name, str(seconds), str(folder)], capture_output=True, text=True
    )
    runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?")
    if done.returncode == 0:
        shutil.rmtree(folder)
        return True, f"{runs} inputs"
    kept = [str(path) for path in folder.iterdir() if path.is_file()]
    return False, f"after {runs} inputs, kept in {', '.join(kept)}\n{done.stderr.partition(' === ')[2][-3000:]}"


def fuzz_memory(words: tuple[str, ...], seconds: int, seed: str) -> tuple[bool, str]:
    found: dict[str, str] = {}
    runs, longest_s = 0, 0.0
    with targets.start(*words) as target:
        first = target.said.split()[0]
        pid = int(first) if first.isdecimal() else target.pid
        kernel.wait_for_call(pid, *kernel.CALLS)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            runs += 1
            chance = random.Random(f"{seed} {runs}")
            told, took_s = corruption.inspect(pid, corruption.Corruption(chance, chance.choice(SHARES)))
            longest_s = max(longest_s, took_s)
            for error in told:
                found.setdefault(error.strip().splitlines()[-1], error)
    return not found, "\n".join([f"{runs} inspections, the longest {longest_s:.1f} s", *found.values()])


def _chosen(wanted: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, the words of the program, for memory) of what is to be fuzzed."""
    parsers = importlib.import_module("tests.harness.parsers")
    every = [(parser.name, ()) for parser in parsers.PARSERS]
    every += [(f"memory.{words[0].removesuffix('.py')}.{words[1]}", words) for words in MEMORY]
    return (each for each in every if not wanted or any(word in each[0] for word in wanted))


def main() -> int:
    if sys.argv[1] == ONE:
        fuzz_one(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    seconds, failed = int(sys.argv[1]), 0
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name, words in _chosen(sys.argv[2:]):
        try:
            fine, said = fuzz_memory(words, seconds, name) if words else fuzz_parser(name, seconds, folder / name)
        except Exception:
            fine, said = False, traceback.format_exc()
        failed += not fine
        print(f"{'fine  ' if fine else 'FAILED'} {name}: {said}", flush=True)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
