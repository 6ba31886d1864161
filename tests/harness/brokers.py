"""Real RabbitMQ, Redis and PostgreSQL from Debian, each in the "there" namespace of a pair, ended by pid at the end.

`Pair.cut(port)` then makes the network between client and broker disappear without a word.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.harness import kernel, namespaces
from tests.harness.namespaces import Pair
from tests.harness.targets import descendants

START_DEADLINE_S = 180.0


@dataclass(frozen=True)
class Broker:
    pid: int
    """The process that answers clients (for RabbitMQ the Erlang VM, for PostgreSQL the postmaster)."""
    address: str
    port: int
    url: str
    pair: Pair
    log: Path | None = None
    """RabbitMQ's own, as it goes to its console."""

    @contextlib.contextmanager
    def client(self) -> Iterator[Broker]:
        """The same server, as a further client sees it that has a network of its own."""
        with namespaces.pair(self.pair.there) as pair:
            url = self.url.replace(self.address, pair.there_address)
            yield replace(self, address=pair.there_address, url=url, pair=pair)

    def cut(self) -> None:
        self.pair.cut(self.port)

    def heal(self) -> None:
        self.pair.heal()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Every process of the broker under SIGSTOP: its kernel answers, it does not."""
        pids = [self.pid, *descendants(self.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            kernel.wait_for_state(pid, "T")
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """RabbitMQ's memory alarm: it blocks every connection that publishes."""
        rabbitmqctl(self, "set_vm_memory_high_watermark", "0.00001")
        try:
            yield
        finally:
            rabbitmqctl(self, "set_vm_memory_high_watermark", "absolute", "2GB")


@contextlib.contextmanager
def _server(
    command: Sequence[str], netns: str, folder: Path, env: dict[str, str] | None = None, user: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    log = (folder / "server.log").open("wb")
    # It ends with the thread that started it too, should the whole run be killed; a change of user would forget that.
    program = command[1:] if command[0] == "setpriv" else command
    process = subprocess.Popen(
        ["ip", "netns", "exec", netns, "setpriv", "--pdeathsig", "KILL", *program],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}, start_new_session=True, cwd=folder,
    )  # fmt: skip
    try:
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(60)
        log.close()


def _wait_for_port(process: subprocess.Popen[bytes], netns: str, port: int, folder: Path) -> None:
    def listening() -> bool:
        if process.poll() is not None:
            raise AssertionError(
                f"server ended with {process.returncode}:\n"
                + (folder / "server.log").read_text(errors="replace")[-4000:]
            )
        out = subprocess.run(
            ["ip", "netns", "exec", netns, "ss", "-tlnH", f"sport = :{port}"], capture_output=True, text=True
        ).stdout
        return bool(out.strip())

    kernel.wait_until(listening, f"a server on port {port}", START_DEADLINE_S)


@contextlib.contextmanager
def _folder(name: str, owner: str = "") -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"stucktrace-{name}-"))
    folder.chmod(0o755)
    if owner:
        account = pwd.getpwnam(owner)
        os.chown(folder, account.pw_uid, account.pw_gid)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def redis(pair: Pair, port: int = 6379) -> Iterator[Broker]:
    command = [
        "redis-server", "--port", str(port), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no",
        "--daemonize", "no",
    ]  # fmt: skip
    with _folder("redis") as folder, _server(command, pair.there, folder) as process:
        _wait_for_port(process, pair.there, port, folder)
        yield Broker(process.pid, pair.there_address, port, f"redis://{pair.there_address}:{port}/0", pair)


@contextlib.contextmanager
def rabbitmq(
    pair: Pair, port: int = 5672, plugins: Sequence[str] = (), settings: Sequence[str] = ()
) -> Iterator[Broker]:
    """Its own node, data folder and port mapper inside the namespace; the user "test" may do everything.

    `settings` are further lines of rabbitmq.conf; the management plugin listens on its usual port.
    """
    with _folder("rabbitmq", "rabbitmq") as folder:
        home = folder / "home"
        home.mkdir()
        (home / ".erlang.cookie").write_text("STUCKTRACETESTS")
        (home / ".erlang.cookie").chmod(0o400)
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = {port}\nloopback_users = none\ndefault_user = test\ndefault_pass = test\n"
            "vm_memory_high_watermark.absolute = 2GB\ndisk_free_limit.absolute = 1MB\n"
            + "".join(f"{line}\n" for line in settings)
        )
        (folder / "plugins").write_text(f"[{','.join(plugins)}].\n")
        for path in (home, home / ".erlang.cookie", folder / "rabbitmq.conf", folder / "plugins"):
            shutil.chown(path, "rabbitmq", "rabbitmq")
        env = {
            "HOME": str(home),
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "LC_ALL": "C.UTF-8",
        }
        server = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        command = ["setpriv", "--reuid", "rabbitmq", "--regid", "rabbitmq", "--clear-groups", server]
        with _server(command, pair.there, folder, env) as process:
            try:
                _wait_for_port(process, pair.there, port, folder)
                yield Broker(
                    _beam(process.pid),
                    pair.there_address,
                    port,
                    f"amqp://test:test@{pair.there_address}:{port}//",
                    pair,
                    folder / "server.log",
                )
            finally:
                _end_port_mapper(pair.there)


def rabbitmqctl(broker: Broker, *arguments: str) -> str:
    """What it says, run where the broker lives, under its user."""
    words = Path(f"/proc/{broker.pid}/environ").read_bytes().split(b"\0")
    kept = [word.decode() for word in words if word.startswith((b"HOME=", b"PATH=", b"RABBITMQ_", b"ERL_EPMD_"))]
    done = subprocess.run(
        [
            "nsenter", "--target", str(broker.pid), "--net", "setpriv", "--reuid", "rabbitmq", "--regid", "rabbitmq",
            "--clear-groups", "env", "-i", *kept, "/usr/lib/rabbitmq/bin/rabbitmqctl", "--silent", *arguments,
        ],
        capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _beam(pid: int) -> int:
    """The Erlang VM among the descendants."""
    for candidate in [pid, *descendants(pid)]:
        if "beam" in Path(f"/proc/{candidate}/comm").read_text():
            return candidate
    raise AssertionError("no Erlang VM below the server's script")


def _end_port_mapper(netns: str) -> None:
    """epmd leaves its parent: it is found as what listens in the namespace that only this broker has."""
    out = subprocess.run(["ip", "netns", "pids", netns], capture_output=True, text=True).stdout
    for word in out.split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{word}/comm").read_text().strip() == "epmd":
                os.kill(int(word), signal.SIGKILL)


@contextlib.contextmanager
def postgresql(pair: Pair, port: int = 5432) -> Iterator[Broker]:
    """A fresh cluster; the user "postgres" needs no password."""
    binaries = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: float(path.name)) / "bin"
    with _folder("postgresql", "postgres") as folder:
        as_postgres = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        data = folder / "data"
        done = subprocess.run(
            [*as_postgres, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"],
            capture_output=True, text=True, cwd=folder, env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 trust\n")
        command = [
            *as_postgres, str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-c", "listen_addresses=*",
            "-c", f"unix_socket_directories={folder}", "-c", "fsync=off",
        ]  # fmt: skip
        with _server(command, pair.there, folder) as process:
            _wait_for_port(process, pair.there, port, folder)
            url = f"postgresql://postgres@{pair.there_address}:{port}/postgres"
            yield Broker(process.pid, pair.there_address, port, url, pair)
