"""docs/kernels.md: kernel x engine x hook -> what was used, from `seen.hooks` of the reports that a run of the machines made.

Each kernel has its section, so that one can be run and written alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tests.vm import kernels, machine

PAGE = machine.REPOSITORY / "docs/kernels.md"
HEAD = """# What is used on which kernel

Written by `make test-vm TABLE=1` from the reports that it made under Debian's own kernels, in emulated machines; `make
test-vm` fails where other hooks are used, or a verdict is wrong. Every hook is found out by trying: another kernel of the same age may
have more or less, and `stucktrace doctor` and the last lines of each report (`seen.hooks`) say what is used on yours.
"""
ENGINES = ("core", "bcc")


def section(lines: Iterable[Mapping[str, Any]]) -> str:
    """One kernel's tables."""
    hooks: dict[str, dict[str, set[str]]] = {}
    verdicts: dict[str, dict[str, str]] = {}
    missing: dict[str, set[str]] = {engine: set() for engine in ENGINES}
    rungs: Mapping[str, str] = {}
    conntrack: Mapping[str, str] = {}
    doctor: list[Mapping[str, Any]] = []
    for line in lines:
        if "verdict" in line:
            verdicts.setdefault(line["case"], {})[line["engine"]] = line["verdict"]
            missing[line["engine"]].update(line["missing"])
            _add(hooks, line["engine"], line["hooks"])
        elif "doctor" in line:
            doctor = [ability for ability in line["doctor"]["abilities"] if not ability["works"]]
        elif "same" in line:
            for engine in ENGINES:
                _add(hooks, engine, line[f"{engine}_hooks"])
                lacking = line.get(engine, {}).get("missing", ())
                missing[engine].update(f"{line['case']}: {text}" for text in lacking)
            for case, found in _compared(line):
                verdicts.setdefault(case, {}).update(found)
        elif "rungs" in line:
            conntrack = line["rungs"]
        else:
            rungs = line
    parts = ["| what is seen | engine core | engine bcc |", "|---|---|---|"]
    parts += [
        f"| {subject} | {_used(found, 'core')} | {_used(found, 'bcc')} |" for subject, found in sorted(hooks.items())
    ]
    parts += ["", "| case | engine core | engine bcc |", "|---|---|---|"]
    parts += [f"| {case} | {found.get('core', '')} | {found.get('bcc', '')} |" for case, found in verdicts.items()]
    if conntrack:
        parts += [
            "",
            "Lost conntrack entries are told of at once by:",
            "",
            *(_rung(*rung) for rung in conntrack.items()),
        ]
    if rungs:
        parts += ["", "Returns of calls are counted exactly by:", "", *(_rung(*rung) for rung in rungs.items())]
    for engine in ENGINES:
        parts += (
            ["", f"Missing with engine {engine}:", "", *(f"- {text}" for text in sorted(missing[engine]))]
            if missing[engine]
            else []
        )
    if doctor:
        parts += [
            "",
            "`stucktrace doctor` lacks:",
            "",
            *(f"- {ability['name']}: {ability['seen']}" for ability in doctor),
        ]
    return "\n".join(parts) + "\n"


def _add(hooks: dict[str, dict[str, set[str]]], engine: str, found: Mapping[str, str]) -> None:
    for subject, means in found.items():
        hooks.setdefault(subject, {}).setdefault(engine, set()).add(means)


def _used(found: Mapping[str, set[str]], engine: str) -> str:
    return "; ".join(sorted(found.get(engine, ()))).replace("|", "\\|")


def _compared(line: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Case -> engine -> what it found, of what both engines looked at."""
    if line["case"] != "verdicts":
        return [(f"{line['case']}, as they are told of", dict.fromkeys(ENGINES, "the same"))]
    return [(case, {engine: " ".join(line[engine][case][1:]) for engine in ENGINES}) for case in line["core"]]


def _rung(name: str, means: str) -> str:
    refused = means.removeprefix("refused: ")
    return f"- {name}: {means}" if refused == means else f"- not {name}: {refused}"


TITLES = {
    **{release: f"## Linux {number} (Debian {release})" for release, number in kernels.RELEASES.items()},
    "arm64": "## arm64: Linux 6.1 (Debian bookworm)",
}


def _there() -> dict[str, str]:
    """Release -> its section as the page has it."""
    text = PAGE.read_text() if PAGE.exists() else ""
    found = {}
    for release in TITLES:
        begins = text.partition(TITLES[release] + "\n\n")[2]
        found[release] = re.split(r"^## ", begins, maxsplit=1, flags=re.MULTILINE)[0].rstrip("\n") + "\n"
    return found


def write(sections: Mapping[str, str]) -> None:
    """The page with these sections; others stay as they are."""
    whole = {**_there(), **sections}
    PAGE.write_text("\n".join([HEAD, *(f"{TITLES[release]}\n\n{whole[release]}" for release in TITLES)]))


def changed(sections: Mapping[str, str]) -> dict[str, str]:
    """Release -> how what was used differs from the page. The verdicts were checked by the run, and what lacks is told in
    words that have an age or a reason of the moment."""
    there = _there()
    return {
        release: "\n".join(difflib.unified_diff(_used_in(there[release]), _used_in(text), "docs", "run", lineterm=""))
        for release, text in sections.items()
        if _used_in(text) != _used_in(there[release])
    }


def _used_in(section: str) -> list[str]:
    """Without the table of cases, why a means was refused, and what stands behind "Missing" or "lacks"."""
    lines, in_cases = [], False
    for line in section.splitlines():
        if line.startswith(("Missing with engine", "`stucktrace doctor` lacks")):
            break
        in_cases = line.startswith("| case |") or (in_cases and line.startswith("|"))
        if not in_cases and line:
            lines.append(line.partition(":")[0] if line.startswith("- not ") else line)
    return lines
