"""Why a target next to us in a container may not be read, and how the container is started so that it may.

Source: /proc/self/status and /proc/PID/status (users, capabilities), kernel.yama.ptrace_scope, our own cgroup and
mounts.
For a container that shares the PID namespace of its target, such as one of kubectl debug --target; on the node itself
the remedies of the collectors say all.
"""

from __future__ import annotations

import os
from pathlib import Path

from stucktrace.collectors import cgroups, containers, procfs
from stucktrace.errors import CannotInspect
from stucktrace.facts import Missing, ProcessFact

WHAT = "rights of this container"
DAC_OVERRIDE, DAC_READ_SEARCH, SYS_PTRACE = 1 << 1, 1 << 2, 1 << 19
_KUBECTL = "kubectl debug -it POD --image=IMAGE --target=CONTAINER --profile=sysadmin{more} -- stucktrace pid {pid}"
_DOCKER = (
    "docker run --rm --pid=container:NAME --user=0 --cap-add=SYS_PTRACE --cap-add=DAC_READ_SEARCH IMAGE "
    "stucktrace pid {pid}"
)


SHARED = (
    "kubectl debug --target=CONTAINER, or shareProcessNamespace: true in the pod, or docker run --pid=container:NAME"
)


def not_ourselves(pid: int) -> None:
    """CannotInspect where `pid` is this very process, or stands above it with nothing else to be seen: so it is in a
    container that does not share the PID namespace of its target."""
    family = _family()
    if pid not in family:
        return
    alone = procfs.own_pids() and family.issuperset(procfs.all_pids())
    if alone:
        raise CannotInspect(
            f"process {pid} is of this container itself, which does not see the processes of another", SHARED
        )
    if pid == os.getpid():
        raise CannotInspect(f"process {pid} is this stucktrace", "`stucktrace pid` lists what could be looked at")


def _family() -> set[int]:
    """This process, those that it was started by, and those that it started."""
    found, pid = {os.getpid(), *procfs.descendants(os.getpid())}, os.getppid()
    while pid:
        found.add(pid)
        try:
            pid = procfs.read_stat(pid).ppid
        except CannotInspect:
            break
    return found


def in_a_pod() -> bool:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    own = containers.read_container(os.getpid(), cgroups.read_paths(os.getpid()))
    return own is not None and bool(own.pod)


def explain(process: ProcessFact) -> Missing | None:
    """None on the node, and where nothing is wrong with our rights."""
    if not procfs.own_pids():
        return None
    try:
        own, target = procfs.read_status(os.getpid()), procfs.read_status(process.pid)
    except CannotInspect:
        return None
    uid, held = os.geteuid(), _capabilities(own, "CapEff")
    because = _because(uid, held, process.uid, _capabilities(target, "CapPrm"))
    if because is None:
        return None
    same = process.uid == uid
    if not in_a_pod():
        return Missing(WHAT, because, _DOCKER.format(pid=process.pid) + _or_as(process, same))
    root = "" if uid == 0 else " --custom=FILE"
    with_file = "" if uid == 0 else ', where FILE says "securityContext: {runAsUser: 0, runAsNonRoot: false}"'
    return Missing(WHAT, because, _KUBECTL.format(more=root, pid=process.pid) + with_file + _or_as(process, same))


def _or_as(process: ProcessFact, same: bool) -> str:
    """A container as the target's own user needs no capability, unless Yama is there."""
    if same or process.uid == 0 or yama():
        return ""
    if in_a_pod():
        return f'; or as the target\'s user: --custom=FILE, which says "securityContext: {{runAsUser: {process.uid}}}"'
    return f"; or as the target's user: --user={process.uid}"


def _because(uid: int, held: int, target_uid: int, target_held: int) -> str | None:
    """What stands in the way; None when nothing does, as far as this tells."""
    lacks = [] if held & SYS_PTRACE else ["CAP_SYS_PTRACE"]
    same = uid == target_uid
    if not same and not held & (DAC_OVERRIDE | DAC_READ_SEARCH):
        lacks.append("CAP_DAC_READ_SEARCH")
    if not lacks:
        return None
    if not same:
        return f"it runs as user {uid} without {' and '.join(lacks)}, the target as user {target_uid}"
    if target_held & ~held:
        return f"the target has capabilities that this container has not, and that one is without {lacks[0]}"
    if scope := yama():
        return f"kernel.yama.ptrace_scope is {scope}: without CAP_SYS_PTRACE no user may read its own processes"
    return None


def yama() -> int:
    """kernel.yama.ptrace_scope; 0 where there is no Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return 0


def _capabilities(status: dict[str, str], name: str) -> int:
    return procfs.first_number(status.get(name, ""), 0, 16)
