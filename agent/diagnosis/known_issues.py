"""Links a finding to what is publicly known about it: known_issues.json beside this file, data and no code.

An entry applies when its `codes` name the finding's code and everything else that it names is there: one of its
`frames` (a function's name, or a file's tail, or a package with a "/" at its end) in the finding's stack, one of its
`families`, `kinds` of worker, lock `mappings`, `libraries`, all `packages`, one of its `evidence` sources, and
`package` within `versions`. An entry with a version bound never applies to a package whose version is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from stucktrace.diagnosis import stacks, vocabulary
from stucktrace.diagnosis.model import Finding, KnownIssue
from stucktrace.facts import Frame, Snapshot

ALIASES: Mapping[str, tuple[str, ...]] = {
    "psycopg2": ("psycopg2", "psycopg2-binary"),
    "psycopg": ("psycopg", "psycopg-binary", "psycopg-c"),
}
"""Distributions that carry the same code under another name."""


@cache
def entries() -> tuple[Mapping[str, Any], ...]:
    text = Path(__file__).with_name("known_issues.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def attach(snapshot: Snapshot, findings: Iterable[Finding]) -> list[Finding]:
    """The findings, each with the known issues that fit it."""
    return [_attached(snapshot, finding) for finding in findings]


def _attached(snapshot: Snapshot, finding: Finding) -> Finding:
    issues = tuple(
        KnownIssue(entry["link"], entry["title"], entry["fix"])
        for entry in entries()
        if finding.code in entry["codes"] and _applies(snapshot, finding, entry)
    )
    return replace(finding, known_issues=(*finding.known_issues, *issues)) if issues else finding


def _applies(snapshot: Snapshot, finding: Finding, entry: Mapping[str, Any]) -> bool:
    process = snapshot.process
    frames = snapshot.frames(finding.tid) if finding.tid is not None else ()
    native = snapshot.native_stack(finding.tid) if finding.tid is not None else None
    all_frames = (*native.frames, *frames) if native is not None else frames
    lock = snapshot.lock(finding.tid) if finding.tid is not None else None
    in_code = any(_names(frame, name) for frame in all_frames for name in entry.get("frames", ()))
    in_mapping = lock is not None and any(name in lock.mapping for name in entry.get("mappings", ()))
    if (entry.get("frames") or entry.get("mappings")) and not (in_code or in_mapping):
        return False
    if entry.get("families") and stacks.read(frames).family not in entry["families"]:
        return False
    if entry.get("kinds") and process.worker.kind not in entry["kinds"]:
        return False
    libraries = (*process.libraries, *process.hooked_c_clients)
    if entry.get("libraries") and not any(name.startswith(tuple(entry["libraries"])) for name in libraries):
        return False
    if any(version_of(snapshot, name) is None for name in entry.get("packages", ())):
        return False
    if entry.get("evidence") and not any(line.source in entry["evidence"] for line in finding.evidence):
        return False
    package = entry.get("package")
    if package is None:
        return True
    version = version_of(snapshot, package)
    return version is not None and within(version, entry.get("versions", ""))


def _names(frame: Frame, name: str) -> bool:
    if "/" not in name:
        return vocabulary.bare(frame.function) == name
    path = "/" + frame.file
    return f"/{name}" in path if name.endswith("/") else path.endswith(f"/{name}")


def version_of(snapshot: Snapshot, package: str) -> str | None:
    """The version of a distribution in the target; "python" is the interpreter's own."""
    if package == "python":
        return snapshot.process.python_version or (snapshot.python.version if snapshot.python else None) or None
    packages = snapshot.process.packages
    return next((packages[name] for name in ALIASES.get(package, (package,)) if name in packages), None)


def within(version: str, bounds: str) -> bool:
    """Whether a version satisfies all comma-separated bounds: ">=4.1.0,<4.2.0". No bounds: any version does."""
    return all(_satisfies(version, bound.strip()) for bound in bounds.split(",") if bound.strip())


def _satisfies(version: str, bound: str) -> bool:
    matched = re.fullmatch(r"(<=|>=|==|!=|<|>)\s*(\S+)", bound)
    if matched is None:
        return False
    operator, other = matched.groups()
    ours, theirs = key(version), key(other)
    return {
        "<": ours < theirs,
        "<=": ours <= theirs,
        ">": ours > theirs,
        ">=": ours >= theirs,
        "==": ours == theirs,
        "!=": ours != theirs,
    }[operator]


_PRE = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}


def key(version: str) -> tuple[int, tuple[int, ...], tuple[int, int], int, int]:
    """A version as something that orders like PEP 440: 4.2.0.dev1 < 4.2.0a1 < 4.2.0rc1 < 4.2 == 4.2.0 < 4.2.0.post1."""
    text = version.strip().lower().lstrip("v").split("+")[0]
    matched = re.match(r"(?:(\d+)!)?(\d+(?:\.\d+)*)", text)
    if matched is None:
        return (0, (), (-1, 0), 0, 0)
    epoch, rest = int(matched.group(1) or 0), text[matched.end() :]
    release = [int(number) for number in matched.group(2).split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    pre = re.match(r"[._-]?(alpha|beta|preview|pre|a|b|rc|c)[._-]?(\d*)", rest)
    post = re.search(r"(?:[._-]?(?:post|rev|r)(?!c)[._-]?(\d*)|^-(\d+))", rest)
    dev = re.search(r"[._-]?dev[._-]?(\d*)", rest)
    pre_key = (_PRE[pre.group(1)], int(pre.group(2) or 0)) if pre else (9, 0)
    if dev and not pre and not post:
        pre_key = (-1, 0)
    post_number = 1 + int(post.group(1) or post.group(2) or 0) if post else 0
    dev_number = int(dev.group(1) or 0) if dev else 1 << 30
    return (epoch, tuple(release), pre_key, post_number, dev_number)
