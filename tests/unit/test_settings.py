"""The agent's settings: who wins, what each mistake is told as, and that a secret is never repeated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stucktrace.errors import InvalidSettings
from stucktrace.settings import KEYS, Settings, describe, load, reloaded

EXAMPLE = Path(__file__).parents[2] / "packaging" / "agent.toml"
DSN = "https://abcdef@sentry.example/42"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def problems(path: Path | None = None, environ: dict[str, str] | None = None, **options: str) -> list[str]:
    with pytest.raises(InvalidSettings) as found:
        load(path, environ or {}, options)
    assert found.value.exit_status == 2
    return list(found.value.problems)


def test_options_win_over_variables_and_those_over_the_file(file: Path):
    file.write_text('[agent]\ninterval = 1\nstuck_after = "10m"\nengine = "none"\ncpu_budget = 0.1\n')
    environ = {"STUCKTRACE_INTERVAL": "2", "STUCKTRACE_STUCK_AFTER": "20", "STUCKTRACE_ENGINE": "", "PATH": "/bin"}
    found = load(file, environ, {"interval_s": "3", "match": None})
    assert (found.interval_s, found.stuck_after_s, found.engine, found.cpu_budget) == (3.0, 20.0, "none", 0.1)
    assert found.journal_age_s == Settings().journal_age_s
    lines = {line.split()[0]: line for line in describe(found).splitlines()}
    assert lines["agent.interval"].endswith("--interval")
    assert lines["agent.stuck_after"].endswith("STUCKTRACE_STUCK_AFTER")
    assert lines["agent.engine"].endswith(f"{file} line 4")
    assert lines["journal.age"].endswith("default")


def test_how_values_may_be_written(file: Path):
    file.write_text(
        'agent.match = "^uvicorn"\n'
        "[metrics]\nlisten = 9464\n"
        '[spool]\ndir = "/var/spool/x"\nbytes = "64MiB"\n'
        '[journal]\nage = "2d"\nbytes = 2_000_000\n'
        '[otlp.headers]\nauthorization = "Bearer x"\n'
    )
    found = load(file, {"STUCKTRACE_JSON": "yes", "STUCKTRACE_STDOUT": "off"}, {})
    assert found.match == re.compile("^uvicorn")
    assert (found.metrics, found.spool, found.spool_bytes) == ("127.0.0.1:9464", Path("/var/spool/x"), 64 << 20)
    assert (found.journal_age_s, found.journal_bytes) == (172800.0, 2_000_000)
    assert found.otlp_headers == (("authorization", "Bearer x"),)
    assert (found.json, found.stdout) == (True, False)
    assert load(None, {"STUCKTRACE_OTLP_HEADERS": "a=b, c=d=e"}, {}).otlp_headers == (("a", "b"), ("c", "d=e"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("9464", "127.0.0.1:9464"),
        (":9464", "127.0.0.1:9464"),
        ("localhost:9464", "127.0.0.1:9464"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[::1]:9464", "[::1]:9464"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ],
)
def test_addresses(given: str, meant: str):
    assert load(None, {}, {"metrics": given}).metrics == meant


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('agent.interval = "fast"', 'agent.interval: "fast" is not a number of seconds from 0.05 to 60'),
        ("agent.interval = true", "agent.interval: true is not a number of seconds from 0.05 to 60"),
        ("agent.interval = 0", "agent.interval: 0 is not a number of seconds from 0.05 to 60"),
        ("agent.stuck_after = nan", "is not a number of seconds from 0.1 to 86400"),
        ('agent.engine = "cbc"', 'agent.engine: "cbc" is not one of "auto", "core", "bcc", "none"'),
        ('agent.match = "("', 'agent.match: "(" is not a regular expression (missing )'),
        ("agent.cpu_budget = 2", "agent.cpu_budget: 2 is not a share of one core from 0.001 to 1"),
        ('agent.json = "maybe"', 'agent.json: "maybe" is not true or false'),
        ('metrics.listen = "metrics:1"', "is not an IP address with a port"),
        ("metrics.listen = 65536", "is not an IP address with a port"),
        ('spool.dir = "spool"', 'spool.dir: "spool" is not an absolute path of a directory'),
        ('journal.bytes = "64 parsecs"', "journal.bytes: \"64 parsecs\" is not a size from 1 MB on"),
        ('otlp.endpoint = "localhost:4317"', 'is not a URL like "http://127.0.0.1:4318"'),
        ("agent.intervall = 1", "agent.intervall is not a setting; did you mean agent.interval?"),
        ("interval = 1", "interval is not a setting; did you mean agent.interval?"),
        ("spool.size = 1", "spool.size is not a setting; [spool] has dir, bytes"),
        ("web.port = 1", "web.port is not a setting; there are the tables agent, sentry"),
        ("agent = 1", "agent is a table: write [agent], and its keys below it"),
        ("agent.interval.x = 1", "agent.interval: a table is not a number of seconds"),
        ("x = [1", "not TOML: "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(file: Path, line: str, said: str):
    file.write_text(f"# a comment\n\n{line}\n")
    (problem,) = problems(file)
    number = 4 if line == "x = [1" else 3
    assert problem.startswith(f"{file} line {number}: ") and said in problem


def test_all_mistakes_are_told_at_once(file: Path):
    file.write_text('[agent]\ninterval = "fast"\n[spool]\nbyte = 1\n')
    found = problems(file, {"STUCKTRACE_ENGINE": "x", "STUCKTRACE_INTERVL": "1"}, metrics="x", match="[")
    assert len(found) == 6, found
    assert 'STUCKTRACE_ENGINE: "x" is not one of "auto", "core", "bcc", "none"' in found
    assert "STUCKTRACE_INTERVL is not a setting; did you mean STUCKTRACE_INTERVAL?" in found
    assert any(problem.startswith("--metrics: ") for problem in found)


def test_variables_that_others_set_are_none_of_ours():
    environ = {
        "STUCKTRACE_PORT": "tcp://10.0.0.1:80",
        "STUCKTRACE_METRICS_SERVICE_HOST": "10.0.0.1",
        "STUCKTRACE_DEBUG": "1",
    }
    assert load(None, environ, {}) == Settings()


def test_a_secret_may_stand_in_a_file_and_is_never_shown(file: Path, tmp_path: Path):
    secret = tmp_path / "dsn"
    secret.write_text(DSN + "\n")
    file.write_text(f'[sentry]\ndsn_file = "{secret}"\n[otlp]\nheaders = {{ authorization = "Bearer abcdef" }}\n')
    found = load(file, {}, {})
    assert found.sentry_dsn == DSN
    assert "abcdef" not in describe(found) + repr(found)
    # A file of a higher rank wins over a value of a lower one.
    other = load(file, {"STUCKTRACE_SENTRY_DSN": "https://x@h/1"}, {})
    assert other.sentry_dsn == "https://x@h/1"

    secret.write_text("abcdef")
    (problem,) = problems(file)
    assert "is not a DSN" in problem and "abcdef" not in problem
    secret.unlink()
    (problem,) = problems(file)
    assert "sentry.dsn_file" in problem and "cannot be read: No such file" in problem
    file.write_text(f'[sentry]\ndsn = "{DSN}"\ndsn_file = "{secret}"\n')
    (problem,) = problems(file)
    assert "one of the two is enough" in problem and "abcdef" not in problem
    for environ in ({"STUCKTRACE_OTLP_HEADERS": "abcdef"}, {"STUCKTRACE_OTLP_ENDPOINT": "http://u:abcdef@h"}):
        (problem,) = problems(None, environ)
        assert "abcdef" not in problem


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "is not UTF-8 text"), (b"#" * 2_000_000, "is larger than"), (None, "cannot be read")],
)
def test_a_file_that_is_none(file: Path, content: bytes | None, said: str):
    if content is not None:
        file.write_bytes(content)
    (problem,) = problems(file)
    assert problem.startswith(str(file)) and said in problem


def test_the_example_has_every_key_with_its_default(file: Path):
    assert load(EXAMPLE, {}, {}) == Settings()
    text = EXAMPLE.read_text()
    table, found = "", {}
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            table = header[1]
        elif key := re.match(r"(#?)(\w+) = ", line):
            found[f"{table}.{key[2]}"] = bool(key[1])
    secrets = {f"{key.path}_file" for key in KEYS if key.secret}
    assert found.keys() == {key.path for key in KEYS} | secrets
    defaults = Settings()
    for key in KEYS:
        assert found[key.path] == (getattr(defaults, key.field) in (None, ())), key.path
    # The examples hold, too; of a secret one of its two ways.
    file.write_text(re.sub(r"(?m)^#(?=\w+ = )(?!dsn_file|headers_file)", "", text))
    assert load(file, {}, {}).sentry_dsn


def test_what_waits_for_a_restart_is_named():
    before = Settings(metrics="127.0.0.1:1", sentry_dsn=DSN)
    now = Settings(metrics="127.0.0.1:2", interval_s=1.0, cpu_budget=0.5)
    in_force, waiting = reloaded(before, now)
    assert in_force == Settings(metrics="127.0.0.1:1", sentry_dsn=DSN, interval_s=1.0, cpu_budget=0.5)
    assert waiting == ("sentry.dsn", "metrics.listen")
    assert reloaded(before, before) == (before, ())


@pytest.mark.parametrize(
    "url", ["http://me:abc/d@ef@host:4318/", "http://host:4318/v1?token=abcd", 'ftp://host/?a"b=abcd']
)
def test_a_wrong_url_is_told_without_its_credentials(url: str):
    (problem,) = problems(otlp_endpoint=url)
    assert "host" in problem and "(hidden)" in problem and "abc" not in problem
