"""Brokers that are started once for all tests of a worker, and what this machine has to have: without it the run fails.

A test that uses a broker belongs to the xdist group of the same name, so each broker is started once in a run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stucktrace.collectors.kernel import Kernel, open_kernel

from tests.harness import brokers, certificates, command, namespaces, targets
from tests.harness.installed import Installed, installed

PROGRAMS = (
    "ip",
    "ss",
    "nft",
    "redis-server",
    "setpriv",
    "unshare",
    "strace",
    "tini",
    "supervisord",
    "conntrack",
    "openssl",
)
ENGINES = ("auto", "none")


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """What `make test` installs, and root: nothing here is skipped for want of it."""
    assert os.geteuid() == 0, "these tests make network namespaces and look at other users' processes: run them as root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    assert not missing, f"not installed: {', '.join(missing)} (make test installs them)"
    assert command.COMMAND.exists(), f"{command.COMMAND} is not there (make dev)"
    done = subprocess.run(["unshare", "--net", "nft", "list", "ruleset"], capture_output=True, text=True)
    assert done.returncode == 0, f"no nftables in a network namespace: {done.stderr}"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The value of --engine."""
    return str(request.param)


@pytest.fixture
def core(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """The BPF side; nothing stays loaded after the test. A parameter: the means that it has to do without."""
    without = frozenset(getattr(request, "param", ()))
    opened = open_kernel("core", without).kernel
    assert opened is not None
    with opened:
        yield opened


@pytest.fixture(scope="session")
def wheel() -> Iterator[Installed]:
    """Built and installed once, so what uses it belongs to the xdist group "wheel"."""
    with installed() as place:
        yield place


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[brokers.Broker]:
    with namespaces.pair() as pair, brokers.rabbitmq(pair) as broker:
        yield broker


@pytest.fixture(scope="session")
def rabbitmq_authority() -> Iterator[Path]:
    """Where the certificate is of the authority that `rabbitmq_view` is trusted by; the broker may read it there."""
    with tempfile.TemporaryDirectory(prefix="stucktrace-certificates-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "ca.pem"


@pytest.fixture(scope="session")
def rabbitmq_view(rabbitmq_authority: Path) -> Iterator[brokers.Broker]:
    """A broker with its management API and TLS, each on its usual port."""
    with namespaces.pair() as pair:
        files = certificates.make(rabbitmq_authority.parent, pair.there_address)
        settings = (
            "listeners.ssl.default = 5671",
            f"ssl_options.cacertfile = {files.authority}",
            f"ssl_options.certfile = {files.certificate}",
            f"ssl_options.keyfile = {files.key}",
        )
        with brokers.rabbitmq(pair, plugins=["rabbitmq_management"], settings=settings) as broker:
            yield broker


@pytest.fixture(scope="session")
def redis() -> Iterator[brokers.Broker]:
    with namespaces.pair() as pair, brokers.redis(pair) as broker:
        yield broker


@pytest.fixture(scope="session")
def postgresql() -> Iterator[brokers.Broker]:
    with namespaces.pair() as pair, brokers.postgresql(pair) as broker:
        yield broker


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What the targets of a failed test wrote."""
    report = (yield).get_result()  # type: ignore[misc]
    if report.failed:
        for target in targets.RUNNING:
            report.sections.append((f"output of target {target.pid}", target.log()[-4000:]))
