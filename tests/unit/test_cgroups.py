"""/proc/PID/cgroup in both versions, and what is frozen."""

from __future__ import annotations

from stucktrace.collectors import cgroups

NOBODY = 0

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


MOUNTS_V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
MOUNTS_HYBRID = """\
22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/freezer rw shared:10 master:2 - cgroup cgroup rw,freezer
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
99 22 0:29 / /mnt/again rw - cgroup2 cgroup2 rw
"""


def test_where_the_freezers_are_mounted():
    assert cgroups.parse_mounts(MOUNTS_V2) == {"cgroup2": "/sys/fs/cgroup"}
    assert cgroups.parse_mounts(MOUNTS_HYBRID) == {
        "cgroup2": "/sys/fs/cgroup/unified",
        "freezer": "/sys/fs/cgroup/freezer",
    }
    assert cgroups.parse_mounts("broken - cgroup2\n\n") == {}


def test_frozen(tmp_path, monkeypatch):
    mounts = {"cgroup2": str(tmp_path), "freezer": str(tmp_path / "freezer")}
    monkeypatch.setattr(cgroups, "_mounts", lambda: mounts)
    for folder, file, text in (
        ("cold", "cgroup.events", "populated 1\nfrozen 1\n"),
        ("warm", "cgroup.events", "populated 1\nfrozen 0\n"),
        ("freezer/cold", "freezer.state", "FROZEN\n"),
        ("freezer/warm", "freezer.state", "THAWED\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / file).write_text(text)
    assert cgroups.frozen(NOBODY, (("", "/cold"),))
    assert not cgroups.frozen(NOBODY, (("", "/warm"),))
    assert cgroups.frozen(NOBODY, (("cpu", "/warm"), ("freezer", "/cold")))
    assert not cgroups.frozen(NOBODY, (("freezer", "/warm"),))
    assert not cgroups.frozen(NOBODY, (("", "/gone"), ("", "/../../cold"), ("memory", "/cold")))
