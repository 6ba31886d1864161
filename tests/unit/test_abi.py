"""The wire between kernel and user space: every Python mirror has the layout that the compiled objects have."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from stucktrace.collectors import events, kernel

BPF = Path(__file__).parents[2] / "bpf"
MIRRORS = [
    mirror for mirror in vars(events).values() if isinstance(mirror, type) and issubclass(mirror, ctypes.Structure)
]


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@cache
def structs() -> dict[str, dict[str, Any]]:
    """Every struct in the installed objects' BTF, of all architectures, by name: its size and its members' (name, offset, size) in bytes."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(kernel.OBJECTS.glob("*.bpf.o")):
        dump = subprocess.run(["bpftool", "btf", "dump", "-j", "file", path], capture_output=True, check=True)
        types = {entry["id"]: entry for entry in json.loads(dump.stdout)["types"]}
        for entry in types.values():
            if entry["kind"] != "STRUCT":
                continue
            members = [(m["name"], m["bits_offset"] // 8, size_of(types, m["type_id"])) for m in entry["members"]]
            layout = {"size": entry["size"], "members": members}
            name = entry["name"]
            if name in {snake_case(mirror.__name__) for mirror in MIRRORS}:
                assert found.setdefault(name, layout) == layout, f"{name} differs between objects"
    return found


def size_of(types: dict[int, dict[str, Any]], type_id: int) -> int:
    entry = types[type_id]
    kind = entry["kind"]
    if kind == "ARRAY":
        return entry["nr_elems"] * size_of(types, entry["type_id"])
    if kind == "PTR":
        return 8
    if kind in ("TYPEDEF", "CONST", "VOLATILE"):
        return size_of(types, entry["type_id"])
    return entry["size"]


@pytest.mark.parametrize("mirror", MIRRORS, ids=lambda mirror: mirror.__name__)
def test_mirror_has_the_layout_of_the_object(mirror):
    layout = structs()[snake_case(mirror.__name__)]
    fields = [
        (name, getattr(mirror, name).offset, getattr(mirror, name).size) for name in (f[0] for f in mirror._fields_)
    ]
    assert fields == layout["members"]
    assert ctypes.sizeof(mirror) == layout["size"]


@pytest.mark.parametrize("mirror", MIRRORS, ids=lambda mirror: mirror.__name__)
def test_no_implicit_padding(mirror):
    assert sum(getattr(mirror, field[0]).size for field in mirror._fields_) == ctypes.sizeof(mirror)


def test_every_record_of_the_header_has_a_mirror():
    header = (BPF / "events.h").read_text()
    names = set(re.findall(r"^struct (\w+) \{", header, re.MULTILINE))
    assert names == {snake_case(mirror.__name__) for mirror in MIRRORS}


def test_the_kinds_are_those_of_the_header():
    body = re.search(r"enum record_kind \{(.*?)\};", (BPF / "events.h").read_text(), re.DOTALL)
    assert body
    kinds = {name: int(value) for name, value in re.findall(r"RECORD_(\w+) = (\d+)", body[1])}
    mirrored = {
        snake_case(mirror.__name__).removesuffix("_record").upper(): mirror.KIND
        for mirror in MIRRORS
        if hasattr(mirror, "KIND")
    }
    assert mirrored == kinds


@pytest.mark.parametrize("source", sorted(BPF.iterdir()), ids=lambda path: path.name)
def test_every_source_names_its_licence(source):
    if source.suffix in (".c", ".h"):
        assert "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause" in source.read_text().splitlines()[0]
