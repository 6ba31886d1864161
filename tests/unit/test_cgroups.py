"""/proc/PID/cgroup in both versions, and what is frozen."""

from __future__ import annotations

from stucktrace.collectors import cgroups

V1 = """\
12:freezer:/kubepods/burstable/pod1/abc
11:cpu,cpuacct:/kubepods/burstable/pod1/abc
1:name=systemd:/system.slice/a:b.service
0::/system.slice/a:b.service
"""


def test_hierarchies():
    assert cgroups.parse("0::/user.slice\n") == (("", "/user.slice"),)
    assert cgroups.parse(V1) == (
        ("freezer", "/kubepods/burstable/pod1/abc"),
        ("cpu,cpuacct", "/kubepods/burstable/pod1/abc"),
        ("name=systemd", "/system.slice/a:b.service"),
        ("", "/system.slice/a:b.service"),
    )
    assert cgroups.parse("") == ()
    assert cgroups.parse("nonsense\n\n") == ()


def test_frozen(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    for folder, file, text in (
        ("cold", "cgroup.events", "populated 1\nfrozen 1\n"),
        ("warm", "cgroup.events", "populated 1\nfrozen 0\n"),
        ("freezer/cold", "freezer.state", "FROZEN\n"),
        ("freezer/warm", "freezer.state", "THAWED\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).write_text(text)
    assert cgroups.frozen((("", "/cold"),))
    assert not cgroups.frozen((("", "/warm"),))
    assert cgroups.frozen((("cpu", "/warm"), ("freezer", "/cold")))
    assert not cgroups.frozen((("freezer", "/warm"),))
    assert not cgroups.frozen((("", "/gone"), ("", "/../../cold"), ("memory", "/cold")))
