"""What the agent was told to do: options over environment over a TOML file over defaults.

One table (`KEYS`) says for every setting how it is called in each of the three and what it accepts. Every problem of a
configuration is told, in one line each that names the place, the key and the accepted values; a secret is never shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stucktrace import setting_values as values
from stucktrace.collectors.pod_list import MOUNTED
from stucktrace.errors import InvalidSettings
from stucktrace.setting_sources import Key, choose, from_environment, from_file, from_options, refusal

DEFAULT_FILE = Path("/etc/stucktrace/agent.toml")
RELOADED = (
    "match", "interval_s", "stuck_after_s", "cpu_budget", "memory_budget_bytes", "journal_bytes", "journal_age_s",
)  # fmt: skip
"""Fields that take hold while the agent runs."""
_YEAR_S = 365 * 86400


@dataclass(frozen=True)
class Settings:
    match: re.Pattern[str] | None = None
    """Watch other Python processes too, whose command line matches."""
    interval_s: float = 0.25
    stuck_after_s: float | None = None
    """None: a share of Celery's soft time limit, else 30."""
    engine: str = "auto"
    node: str | None = None
    """None: the host name."""
    cpu_budget: float = 0.05
    """A share of one core. Over it the agent sheds work."""
    memory_budget_bytes: int = 256_000_000
    json: bool = False
    """JSON lines on a terminal too."""
    stdout: bool = True
    sentry_dsn: str | None = field(default=None, repr=False)
    sentry_environment: str | None = None
    metrics: str | None = None
    """HOST:PORT to listen on; None: no port is opened."""
    otlp_endpoint: str | None = None
    """http://HOST:PORT; /v1/logs and /v1/metrics are added."""
    otlp_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    spool: Path | None = None
    """None: what cannot be delivered waits in memory and is lost with the process."""
    spool_bytes: int = 64_000_000
    journal: Path | None = None
    journal_bytes: int = 256_000_000
    journal_age_s: float = 7 * 86400.0
    kubernetes_pods: str = "off"
    """Who is asked for the names of pods: "off", "api" or "kubelet"."""
    kubernetes_url: str | None = None
    """None: the API server that a pod is told of; the kubelet of $NODE_IP, else of the loopback address."""
    kubernetes_token_file: Path = MOUNTED / "token"
    kubernetes_ca_file: Path = MOUNTED / "ca.crt"
    kubernetes_verify: bool = True
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Field -> where its value came from; defaults are not in it."""


KEYS = (
    Key("match", "agent.match", values.pattern, "a regular expression", "--match"),
    Key("interval_s", "agent.interval", values.seconds(0.05, 60), "a number of seconds from 0.05 to 60", "--interval"),
    Key(
        "stuck_after_s", "agent.stuck_after", values.seconds(0.1, 86400),
        'a number of seconds from 0.1 to 86400, or a time like "10m"', "--stuck-after",
    ),
    Key(
        "engine", "agent.engine", values.one_of("auto", "core", "bcc", "none"),
        'one of "auto", "core", "bcc", "none"', "--engine",
    ),
    Key("node", "agent.node", values.text, "a name"),
    Key("cpu_budget", "agent.cpu_budget", values.between(0.001, 1), "a share of one core from 0.001 to 1"),
    Key(
        "memory_budget_bytes", "agent.memory_budget", values.size(32_000_000, 1 << 40),
        'a size from 32 MB on, like "256MB" or a number of bytes',
    ),
    Key("json", "agent.json", values.boolean, "true or false", "--json"),
    Key("stdout", "agent.stdout", values.boolean, "true or false"),
    Key("sentry_dsn", "sentry.dsn", values.dsn, "a DSN, https://KEY@HOST/PROJECT", "--sentry-dsn", secret=True),
    Key("sentry_environment", "sentry.environment", values.text, "a name"),
    Key(
        "metrics", "metrics.listen", values.listen_address,
        'an IP address with a port, like "127.0.0.1:9464", or a port alone (of the loopback address)', "--metrics",
    ),
    Key(
        "otlp_endpoint", "otlp.endpoint", values.endpoint, 'a URL like "http://127.0.0.1:4318"', "--otlp-endpoint",
    ),
    Key(
        "otlp_headers", "otlp.headers", values.headers,
        'HTTP headers: a table, or text like "name=value,name=value"', secret=True,
    ),
    Key("spool", "spool.dir", values.directory, "an absolute path of a directory", "--spool"),
    Key(
        "spool_bytes", "spool.bytes", values.size(1_000_000, 1 << 40),
        'a size from 1 MB on, like "64MB" or a number of bytes',
    ),
    Key("journal", "journal.dir", values.directory, "an absolute path of a directory", "--journal"),
    Key(
        "journal_bytes", "journal.bytes", values.size(1_000_000, 1 << 40),
        'a size from 1 MB on, like "256MB" or a number of bytes',
    ),
    Key(
        "journal_age_s", "journal.age", values.seconds(60, 10 * _YEAR_S),
        'a number of seconds from 60 on, or a time like "7d"',
    ),
    Key(
        "kubernetes_pods", "kubernetes.pods", values.one_of("off", "api", "kubelet"), 'one of "off", "api", "kubelet"',
    ),
    Key("kubernetes_url", "kubernetes.url", values.server, 'a URL like "https://10.0.0.1:10250"'),
    Key("kubernetes_token_file", "kubernetes.token_file", values.file, "an absolute path of a file"),
    Key("kubernetes_ca_file", "kubernetes.ca_file", values.file, "an absolute path of a file"),
    Key("kubernetes_verify", "kubernetes.verify", values.boolean, "true or false"),
)  # fmt: skip


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, Any]) -> Settings:
    """`options`: field -> value as typed; None and fields that are missing were not given. InvalidSettings."""
    problems: list[str] = []
    layers = (
        from_file(path, KEYS, problems) if path else {},
        from_environment(environ, KEYS, problems),
        from_options(options, KEYS),
    )
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key in KEYS:
            given = choose(key, layer, problems)
            if given is None:
                continue
            try:
                found[key.field] = key.read(given.value)
                origins[key.field] = given.origin
            except ValueError as error:
                problems.append(refusal(key, given, str(error)))
    if problems:
        # Those of the file as a reader meets them, then the others.
        raise InvalidSettings(tuple(sorted(problems, key=lambda problem: _line_of(problem, path))))
    return Settings(**found, origins=origins)


def _line_of(problem: str, path: Path | None) -> float:
    found = re.match(rf"{re.escape(str(path))} line (\d+): ", problem)
    return int(found[1]) if found else float("inf")


def default_file() -> Path | None:
    """The file that is read when none is named. One that is there and cannot be read is a problem of `load`."""
    try:
        DEFAULT_FILE.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass
    return DEFAULT_FILE


def reloaded(before: Settings, now: Settings) -> tuple[Settings, tuple[str, ...]]:
    """What is in force once `now` is read by an agent that has `before`, and the keys that wait for a restart."""
    waiting = tuple(
        key.path for key in KEYS if key.field not in RELOADED and getattr(before, key.field) != getattr(now, key.field)
    )
    return replace(before, **{name: getattr(now, name) for name in RELOADED}), waiting


def describe(settings: Settings) -> str:
    """Every setting with its value and where that came from, a line each."""
    rows = [
        (key.path, _as_text(key, getattr(settings, key.field)), settings.origins.get(key.field, "default"))
        for key in KEYS
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{path:{widths[0]}}  {value:{widths[1]}}  {origin}\n" for path, value, origin in rows)


def _as_text(key: Key, value: Any) -> str:
    if value is None or value == ():
        return "not set"
    if key.secret:
        return "set, not shown"
    if isinstance(value, re.Pattern):
        value = value.pattern
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)
