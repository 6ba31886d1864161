"""docs/privileges.md, written from agent/privileges.py: `python -m tests.privileges` (`test_privileges.py` compares)."""

from __future__ import annotations

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
`record -o` and `amqp --pcap`. No /tmp is needed. `NoNewPrivileges` changes nothing: no program it runs has privileges of
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


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE)
