"""Engine bcc as far as it goes without a kernel's headers: the text for bcc, the child's failures, the packages named."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from stucktrace.collectors import bcc, bcc_node, bcc_source, lifecycle, tcp, trouble
from stucktrace.collectors.kernel import OBJECTS

TRACEPOINTS = {
    "lifecycle": lifecycle.HOOKS,
    "tcp": tcp.HOOKS,
    "trouble": trouble.HOOKS,
    "waits": {"count_return": "sys_exit"},
}
WITHOUT_FDS = (
    "import os, sys; "
    'os.write(int(sys.argv[1]), b"{\\"programs\\": [\\"a\\"], \\"maps\\": [], \\"refusals\\": {}, \\"cpu_s\\": 0}")'
)


@pytest.mark.parametrize("name", TRACEPOINTS)
def test_the_text_is_whole_and_in_bccs_words(name: str):
    text = bcc_source.text_of(name, OBJECTS)
    assert '#include "' not in text
    # What is left calls the helpers of maps that bcc does not see.
    assert "bpf_map_lookup_elem(&" not in text and "bpf_map_delete_elem(&" not in text
    assert bcc_source.hooks(text) == TRACEPOINTS[name]
    assert "lost" in bcc_source.maps(text)
    assert ("ring" in bcc_source.maps(text)) == (name in ("lifecycle", "trouble"))


def test_a_calls_flag_is_part_of_bccs_name(tmp_path: Path):
    (tmp_path / "one.h").write_text("MAP_HASH(seen, __u32, __u32, 8);\n")
    (tmp_path / "one.bpf.c").write_text(
        '#include "one.h"\n#include "one.h"\n'
        "HOOK(on_one, one)\n{\n"
        "\tbpf_map_update_elem(&seen, &key, &value, BPF_ANY);\n"
        "\tif (bpf_map_update_elem(&seen, &key, &value, BPF_NOEXIST))\n"
        "\t\treturn bpf_map_lookup_elem(&seen, &key) ? 1 : bpf_map_delete_elem(&seen, &key);\n}\n"
    )
    assert bcc_source.text_of("one", tmp_path) == (
        "MAP_HASH(seen, __u32, __u32, 8);\n"
        "HOOK(on_one, one)\n{\n"
        "\tseen.update(&key, &value);\n"
        "\tif (seen.insert(&key, &value))\n"
        "\t\treturn seen.lookup(&key) ? 1 : seen.delete(&key);\n}\n"
    )


@pytest.mark.parametrize(
    ("script", "because"),
    [
        (
            "echo 'In file included from x.h:1:\n/virtual/main.c:12:3: error: no member named y' >&2; exit 1",
            "main.c:12",
        ),
        ("exit 7", "status 7"),
        ("exec sleep 600", "within"),
        (f"exec {sys.executable} -c '{WITHOUT_FDS}' $3", "no file descriptors left"),
    ],
    ids=["an error", "silent", "hangs", "its descriptors do not arrive"],
)
def test_a_child_that_fails_costs_one_line(script: str, because: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(bcc_node, "python_with_bcc", lambda: str(python))
    monkeypatch.setattr(bcc, "DEADLINE_S", 1.0)
    began = time.monotonic()
    with pytest.raises(bcc.CompileError) as refused, bcc.BccKernel() as kernel:
        kernel.load("tcp")
    assert because in str(refused.value) and "\n" not in str(refused.value)
    assert time.monotonic() - began < 60


def test_a_child_that_cannot_be_started_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bcc_node, "python_with_bcc", lambda: str(tmp_path / "gone"))
    with pytest.raises(bcc.CompileError, match="could not be started: No such file"), bcc.BccKernel() as kernel:
        kernel.load("tcp")


@pytest.mark.parametrize(
    ("os_release", "family"),
    [
        ("ID=debian\n", "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "debian"),
        ('NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ('ID="amzn"\nID_LIKE="centos rhel fedora"\n', "fedora"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "suse"),
        ("ID=alpine\n", ""),
    ],
)
def test_the_distribution_is_known_by_its_relatives(os_release: str, family: str):
    assert bcc_node.family_of(os_release) == family
