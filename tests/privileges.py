"""docs/privileges.md, written from agent/privileges.py: `python -m tests.privileges` (`test_privileges.py` compares).

`python -m tests.privileges --try [FEATURE...]` runs each feature on a real hang of another user in another network
namespace: with exactly what is documented, then with each capability taken away, and shows what is lost.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from stucktrace import privileges

PAGE = Path(__file__).parents[1] / "docs" / "privileges.md"

HEAD = """\
<!-- Written by `python -m tests.privileges` from agent/privileges.py. -->
# Privileges

stucktrace asks the kernel for what it may not show to everybody: other processes' memory, fd tables and sockets. Here
is the smallest set of capabilities for each feature, found by taking each one away in turn, for a target of **another
user** in **another network namespace**. `stucktrace doctor` tests what works where it runs, and names what lacks; a
report says what it could not see, and which capability would show it (a capability that is there is never named).

"""

AGENT = """\
## The agent

The DaemonSet, the Helm chart and the systemd unit grant exactly {agent}. With these it finds a hang with its
Python stack, socket, lock owner and conntrack entry, in other users' processes and in other network namespaces.

`SYS_ADMIN` and `NET_ADMIN` are left out. The BPF engine sees the sockets of every network namespace without entering
it, and /proc/PID/net shows a table's size and entries (CONFIG_NF_CONNTRACK_PROCFS, which most distributions set; a
table of more than 50 000 entries is not searched). Grant them (Helm: `networkNamespaces.enter: true`) for:
- a conntrack entry's loss to be noticed as it happens, and to be proof (`half-open proven`) where the rules drop what
  has no entry;
- `stucktrace conntrack`, `--probe`, `amqp` (with `NET_RAW`), `unstick` and `--broker rabbitmqctl` inside the pod;
- a kernel without BTF (engine `none`): the timers of sockets in other network namespaces;
- a kernel before 5.8, where BPF itself needs `SYS_ADMIN`.

As root of a container or as a user of its own with ambient capabilities is the same to it. Root's uid adds nothing
when the capabilities are dropped. `SYS_PTRACE` and `DAC_READ_SEARCH` on a node are strong all the same: they read every
process's memory and every file. Keep the image and the namespace to those who may.
"""

REST = """\
## What else can refuse

With the capabilities there, these can still say no; the report then names them and not a capability:

| what | how it shows | what helps |
|---|---|---|
| the runtime's seccomp profile | `bpf`, `perf_event_open`, `pidfd_getfd` or `setns` refused (EPERM). containerd before 1.7 and Docker before 23 allow `bpf` with SYS_ADMIN alone, CRI-O and podman `perf_event_open` | packaging/seccomp.json as the Localhost profile |
| AppArmor (`docker-default`, `cri-containerd.apparmor.d`) | memory of processes outside of the container | `appArmorProfile: {type: Unconfined}` |
| SELinux (`container_t`) | the same | `seLinuxOptions: {type: spc_t}` |
| Yama, `kernel.yama.ptrace_scope` | 1 and 2: lifted by SYS_PTRACE. 3: nobody may look | a reboot without it |
| lockdown | `confidentiality`: BPF may not read the kernel's memory | `lockdown=integrity`, or `--engine none` |
| a user namespace (`hostUsers: false`) | capabilities count for its own processes only | `hostUsers: true` |
| locked memory, before Linux 5.11 | BPF maps count as such | `LimitMEMLOCK=infinity`, or SYS_RESOURCE |

## seccomp

packaging/seccomp.json is a profile for the agent and the commands, for x86_64 and arm64: the system calls that they and
their children make, and no other (`mount`, `ptrace`, `kexec_load`, `init_module`, `unshare` and some 200 more are
refused with EPERM). Put it into the kubelet's `seccomp/profiles/` and name it: `seccompProfile: {type: Localhost,
localhostProfile: profiles/stucktrace.json}`; Docker: `--security-opt seccomp=seccomp.json`. `pid --native` may need
`ptrace` where py-spy has to unwind a running thread; it then says so.

## Files

The root file system may be read-only, and nothing is written but where the settings say so: `--journal`, `--spool`,
`record -o` and `amqp --pcap`. Engine bcc alone may need /tmp. `NoNewPrivileges` changes nothing: no program it runs has privileges of
its own.
"""


def page() -> str:
    features = ["## Features", "", "| feature | capabilities | |", "|---|---|---|"]
    for one in privileges.FEATURES:
        features.append(f"| `{one.name}` | {' '.join(f'`{name}`' for name in one.needs) or 'none'} | {one.note} |")
    capabilities = ["## Capabilities", "", "| CAP_ | what for | lost without it |", "|---|---|---|"]
    for name, (use, lost) in privileges.CAPABILITIES.items():
        capabilities.append(f"| `{name}` | {use} | {lost} |")
    agent = AGENT.format(agent=", ".join(f"`{name}`" for name in privileges.AGENT))
    return HEAD + "\n".join([*features, "", *capabilities, "", agent]) + "\n" + REST


WORDS = {
    "pid": "pid PID",
    "pid --engine none": "pid PID --engine none",
    "pid --native": "pid PID --native",
    "pid --probe": "pid PID --probe",
    "pid --broker rabbitmqctl": "pid BROKERS --broker rabbitmqctl",
    "ps": "ps --all",
    "record": "record PID -o JOURNAL",
    "audit": "audit PID",
    "amqp": "amqp PID --for 1s",
    "conntrack": "conntrack PID",
    "unstick": "unstick PID --dry-run",
}
"""What is run for a feature; the agent has tests of its own."""


PROVEN_S = 32.0


def try_all(wanted: list[str]) -> None:
    """Half a minute after the hang began, so that unstick takes it for proven."""
    from tests.harness import brokers, celery, installed, kernel, namespaces
    from tests.harness import privileges as hangs

    with contextlib.ExitStack() as stack:
        place, hung = stack.enter_context(installed.installed()), stack.enter_context(hangs.hang())
        pids = {"PID": str(hung.pid), "JOURNAL": str(place.empty / "journal")}
        if not wanted or "pid --broker rabbitmqctl" in wanted:
            pair = stack.enter_context(namespaces.pair())
            worker = celery.worker(stack.enter_context(brokers.rabbitmq(pair)), "-Q", "kept", "-n", "privileges@test")
            pids["BROKERS"] = str(stack.enter_context(worker).main)
        for tid in kernel.tids(hung.pid):
            kernel.wait_until(lambda tid=tid: kernel.asleep_s(hung.pid, tid) > PROVEN_S, "it hangs for long enough")
        for feature in privileges.FEATURES:
            if feature.name not in WORDS or (wanted and feature.name not in wanted):
                continue
            words = [pids.get(word, word) for word in WORDS[feature.name].split()]
            for dropped in ("", *feature.needs):
                (place.empty / "journal").unlink(missing_ok=True)
                prefix = hangs.as_root([name for name in feature.needs if name != dropped])
                line = [*prefix, str(place.command), *words]
                done = subprocess.run(line, capture_output=True, cwd="/", stdin=subprocess.DEVNULL)
                text = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
                said = [line.strip() for line in text.splitlines() if "CAP_" in line or "Remedy" in line]
                title = f"without {dropped}" if dropped else "with all of them"
                print(f"{feature.name:<26} {title:<24} status {done.returncode}  {' / '.join(said)[:240]}", flush=True)


if __name__ == "__main__":
    if "--try" in sys.argv:
        try_all([word for word in sys.argv[1:] if word != "--try"])
        sys.exit()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE)
