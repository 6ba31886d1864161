"""The C of one BPF object as the one text that bcc takes: with our includes, and three calls spelt as bcc has them.

Pure. The sources are those of the core objects (bpf/), which choose by `__BCC__`.
"""

from __future__ import annotations

import re
from pathlib import Path

_INCLUDE = re.compile(r'^#include "(\w[\w.]*)"\n', re.MULTILINE)
_UPDATE = re.compile(r"\bbpf_map_update_elem\(&(\w+), ([^;]*?), (BPF_ANY|BPF_NOEXIST)\)")
_CALL = re.compile(r"\bbpf_map_(lookup|delete)_elem\(&(\w+), ")
_HOOK = re.compile(r"^HOOK\((\w+), (\w+)\)", re.MULTILINE)
_MAP = re.compile(r"^MAP_\w+\((\w+), ", re.MULTILINE)
_METHODS = {"BPF_ANY": "update", "BPF_NOEXIST": "insert"}


def text_of(name: str, folder: Path) -> str:
    """The whole text of NAME.bpf.c, for bcc. OSError when a source is not there."""
    text = _with_includes(folder / f"{name}.bpf.c", set())
    text = _UPDATE.sub(lambda call: f"{call[1]}.{_METHODS[call[3]]}({call[2]})", text)
    return _CALL.sub(lambda call: f"{call[2]}.{call[1]}(", text)


def _with_includes(source: Path, done: set[str]) -> str:
    """Each file stands where it is included first."""
    done.add(source.name)

    def put_in(include: re.Match[str]) -> str:
        return "" if include[1] in done else _with_includes(source.parent / include[1], done)

    return _INCLUDE.sub(put_in, source.read_text(encoding="utf-8"))


def hooks(text: str) -> dict[str, str]:
    """Program -> the tracepoint it sits on (bpf/hook.h)."""
    return dict(_HOOK.findall(text))


def maps(text: str) -> list[str]:
    """The maps that are declared by bpf/maps.h, and the ring."""
    return [*_MAP.findall(text), *(["ring"] if "emit_record(" in text else [])]
