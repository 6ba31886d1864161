"""docs/kernels.md: what a run under other kernels found is compared with it, one kernel at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm import table

CORE = {
    "engine": "core",
    "case": "spinning",
    "verdict": "spinning likely",
    "hooks": {"threads": "iter/task", "waits": "tp_btf/sys_exit"},
    "missing": ["retransmits: no such tracepoint"],
}
BCC = {**CORE, "engine": "bcc", "hooks": {"threads": "/proc", "waits": "raw_tp/sys_exit"}, "missing": []}
DOCTOR = {
    "engine": "core",
    "case": "doctor",
    "doctor": {
        "abilities": [
            {"name": "btf", "works": True, "seen": "4 MiB"},
            {"name": "yama", "works": False, "seen": "ptrace_scope is 3"},
        ]
    },
}
BOTH = {"case": "calls", "same": True, "core_hooks": {"waits": "tp_btf/sys_exit"}, "bcc_hooks": {}}
RUNGS = {"fexit": "fexit/syscalls", "tp_btf": "refused: not here"}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(table, "PAGE", tmp_path / "kernels.md")
    return tmp_path / "kernels.md"


def test_a_section_has_what_was_used_and_what_lacked():
    lines = table.section([CORE, BCC, DOCTOR, BOTH, RUNGS]).splitlines()
    assert "| waits | tp_btf/sys_exit | raw_tp/sys_exit |" in lines
    assert "| spinning | spinning likely | spinning likely |" in lines
    assert "- retransmits: no such tracepoint" in lines
    assert "- yama: ptrace_scope is 3" in lines
    assert "- fexit: fexit/syscalls" in lines and "- not tp_btf: not here" in lines


def test_a_kernel_run_alone_leaves_the_others_as_they_are(page: Path):
    first, second = table.section([CORE]), table.section([BCC])
    table.write({"bullseye": first, "trixie": first})
    assert table.changed({"bullseye": first, "trixie": first}) == {}
    table.write({"trixie": second})
    assert table.changed({"bullseye": first, "trixie": second}) == {}
    assert "+| threads | iter/task |  |" in table.changed({"trixie": first})["trixie"]


def test_a_kernel_that_the_page_does_not_know_is_a_change(page: Path):
    assert set(table.changed({"bookworm": table.section([CORE])})) == {"bookworm"}
