"""A virtual machine with one of Debian's kernels over this machine's own tree.

QEMU emulates the processor, for KVM is not everywhere. The guest's clock counts the instructions that it executed, a
billion a second, and follows the machine's clock while it idles: as far as the guest can tell, a program needs about the
time that it needs on hardware, however slow and busy the machine is, so no deadline inside has to be widened.

The machine's / is the guest's, read-only over 9p, below an overlay in the guest's memory: what the guest writes is gone
with it. A small folder is shared both ways: the command goes in by it, its output and its status come out. The kernel's
console goes into a file.
"""

from __future__ import annotations

import ctypes
import lzma
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.vm import kernels

REPOSITORY = Path(__file__).parents[2]
MEMORY_MB = 2048
PROCESSORS = 1
"""Counted instructions are executed by one thread of QEMU; with two processors in the guest it hardly moves."""
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
CONNTRACK = ("crc32c_generic", "libcrc32c", "nf_conntrack", "nf_conntrack_netlink", "nf_tables", "nft_ct")
"""What the initramfs inserts after its file systems, as a node with a firewall has it."""
SOCK_DIAG = ("inet_diag", "tcp_diag")
"""What else another architecture's tree is asked for, which has no modprobe."""
WITHOUT_BTF = "mount -t tmpfs tmpfs /sys/kernel/btf"
"""libbpf and bcc read the kernel's types there and nowhere else, once no file of a kernel with them is about."""
_PR_SET_PDEATHSIG = 1

# The kernel starts this from the initramfs. Bigger requests make 9p quick; the tree is not written to meanwhile, so all of it
# may be cached.
_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "cannot insert $module"; done
mkdir -p /lower /upper /root
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose tree /lower
mount -t tmpfs -o size=80% tmpfs /upper
mkdir /upper/changes /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /root
umount /proc /sys
mount --move /dev /root/dev
mkdir -p /root/run/stucktrace-vm
mount -t tmpfs tmpfs /root/run
mkdir -p /root/run/stucktrace-vm
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 shared /root/run/stucktrace-vm
exec switch_root /root /bin/sh /run/stucktrace-vm/start
"""

# And this is the first process of the guest proper.
_START = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mkdir -p /run/netns /run/lock
ip link set lo up
hostname stucktrace-vm
{preparation}
cd {cwd}
/bin/sh /run/stucktrace-vm/command >/run/stucktrace-vm/output 2>&1 </dev/null
echo $? >/run/stucktrace-vm/status.new
mv /run/stucktrace-vm/status.new /run/stucktrace-vm/status
sync
busybox poweroff -f
"""


@dataclass(frozen=True)
class Ended:
    status: int | None
    """None: the guest did not come to its end."""
    console: str
    """What the kernel said."""
    seconds: float

    def last_lines(self, lines: int = 30) -> str:
        return "\n".join(self.console.replace("\r", "").splitlines()[-lines:])


def run(
    release: str,
    command: Sequence[str],
    *,
    headers: bool = False,
    btf: bool = True,
    deadline_s: float = 900.0,
    output: BinaryIO | None = None,
    env: Mapping[str, str] | None = None,
    architecture: str = "amd64",
    tree: Path = Path("/"),
    cwd: Path = REPOSITORY,
) -> Ended:
    """Runs the command as root within this repository, under the release's kernel; what it prints goes to `output`.

    Another architecture needs another `tree` to be the guest's /, with static busybox and ip in it, and another `cwd`.
    """
    kernel = kernels.get(release, architecture)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stucktrace-vm-") as folder:
        home = Path(folder)
        shared = home / "shared"
        shared.mkdir()
        linked = _linked(kernel, headers) if tree == Path("/") else []
        preparation = "\n".join([*linked, *([] if btf else [WITHOUT_BTF])])
        (shared / "start").write_text(_START.format(preparation=preparation, cwd=shlex.quote(str(cwd))))
        (shared / "command").write_text(_command(command, env or {}))
        (shared / "output").touch()
        _initramfs(kernel, tree, home)
        machine = subprocess.Popen(
            _qemu(kernel, tree, home), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_end_with_parent
        )
        try:
            with open(shared / "output", "rb") as said:
                ends = began + deadline_s
                while machine.poll() is None and time.monotonic() < ends:
                    _pass_on(said, output)
                    time.sleep(0.1)
                _pass_on(said, output)
        finally:
            machine.kill()
            _, complaint = machine.communicate()
        status = shared / "status"
        console = (home / "console").read_text(errors="replace") if (home / "console").exists() else ""
        return Ended(
            int(status.read_text()) if status.exists() else None,
            console + complaint.decode(errors="replace"),
            time.monotonic() - began,
        )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on(said: BinaryIO, output: BinaryIO | None) -> None:
    while chunk := said.read(65536):
        if output:
            output.write(chunk)
            output.flush()


def _command(command: Sequence[str], env: Mapping[str, str]) -> str:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return "\n".join([*exports, f"exec {shlex.join(command)}", ""])


def _linked(kernel: kernels.Kernel, headers: bool) -> list[str]:
    """The kernel's own files where they belong on a machine that has it installed."""
    place = f"/lib/modules/{kernel.version}"
    lines = [f"mkdir -p {place}", f"ln -s {kernel.modules}/* {place}/", f"ln -s {kernel.root}/boot/* /boot/"]
    if headers:
        lines += [f"ln -s {kernel.root}/usr/src/* /usr/src/", f"ln -s /usr/src/{kernel.headers.name} {place}/build"]
        # What Debian shares between the flavours of a version; bcc wants both.
        lines.append(f"for common in /usr/src/linux-headers-*-common; do ln -s $common {place}/source; done")
    return lines


def _initramfs(kernel: kernels.Kernel, root: Path, home: Path) -> None:
    tree = home / "initramfs"
    for name in ("bin", "dev", "modules", "proc", "sys"):
        (tree / name).mkdir(parents=True)
    (tree / "bin/busybox").write_bytes((root / "bin/busybox").read_bytes())
    (tree / "init").write_text(_INIT)
    for program in ("bin/busybox", "init"):
        (tree / program).chmod(0o755)
    files = kernel.with_needs(*MODULES, *CONNTRACK, *SOCK_DIAG)
    for file in files:
        content = file.read_bytes()
        (tree / "modules" / file.name.removesuffix(".xz")).write_bytes(
            lzma.decompress(content) if file.suffix == ".xz" else content
        )
    (tree / "modules/order").write_text("\n".join(file.name.removesuffix(".xz") for file in files))
    subprocess.run(
        f"find . | busybox cpio -o -H newc > {shlex.quote(str(home / 'initramfs.cpio'))}",
        shell=True, cwd=tree, check=True, capture_output=True,
    )  # fmt: skip


_MACHINES = {
    # The emulated time-stamp counter is as good as the machine's; the slow alternatives would be asked at every look at
    # the clock.
    # A processor without AVX: the C library uses the widest vectors there are, and those cost most to emulate.
    "amd64": ("qemu-system-x86_64 -accel tcg -cpu Nehalem,+rdrand", "console=ttyS0 tsc=reliable"),
    # Signing every return address the architecture's own way is most of what emulation would do.
    "arm64": ("qemu-system-aarch64 -machine virt -accel tcg -cpu max,pauth-impdef=on", "console=ttyAMA0"),
}
"""Architecture -> the emulator, and what its kernel is told beside _WORDS."""
_WORDS = "quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on"


def _qemu(kernel: kernels.Kernel, tree: Path, home: Path) -> list[str]:
    emulator, words = _MACHINES[kernel.architecture]
    return [
        *emulator.split(), "-icount", "shift=0,sleep=on", "-smp", str(PROCESSORS), "-m", str(MEMORY_MB), "-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{home / 'console'}",
        "-kernel", str(kernel.image), "-initrd", str(home / "initramfs.cpio"), "-append", f"{words} {_WORDS}",
        "-fsdev", f"local,id=tree,path={tree},security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=tree,mount_tag=tree",
        "-fsdev", f"local,id=shared,path={home / 'shared'},security_model=none",
        "-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared",
    ]  # fmt: skip
