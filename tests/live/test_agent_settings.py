"""`stucktrace agent` and its configuration: checked, read again on SIGHUP, and what it opens to others because of it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families as parse

from tests.harness import agent, command, kernel, namespaces, targets
from tests.harness.otlp_collector import collector, values

PORT = 9464
"""Free: the namespace is new."""


def connected(port: int) -> bool:
    return any(found["remote"].endswith(f":{port}") for found in kernel.sockets())


def get(netns: str, path: str) -> str:
    source = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{PORT}{path}').read().decode())"
    return namespaces.run(netns, sys.executable, "-c", source)


def scraped(netns: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(get(netns, "/metrics"))
        for sample in family.samples
    }


def hang_up(watcher: agent.Agent, lines: int) -> list[str]:
    """What it says after a SIGHUP, once it has said so many lines."""
    before = watcher.said().count("\n")
    os.kill(watcher.pid, signal.SIGHUP)
    kernel.wait_until(lambda: watcher.said().count("\n") >= before + lines, "the agent's words")
    return watcher.said().splitlines()[before:]


def test_sighup_reads_the_file_again_and_a_mistake_changes_nothing(tmp_path: Path):
    file = tmp_path / "agent.toml"
    file.write_text("[agent]\nstuck_after = 3600\n")
    with agent.gunicorn("-k", "gthread", "--threads", 2) as server, targets.start("http_holder.py", "deaf") as holder:
        with (
            agent.watching(server.master, "--config", file) as watcher,
            server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"),
        ):
            (worker,) = server.workers
            kernel.wait_until(lambda: connected(int(holder.said)), "the request's connection")
            file.write_text('[agent]\nstuck_after = "soon"\ninterval = 0\n')
            said = hang_up(watcher, 2)
            assert f"{file} line 2: agent.stuck_after" in said[0] and "stay as they were" in said[0], said
            assert f"{file} line 3: agent.interval" in said[1] and len(said) == 2, said
            file.write_text("[agent]\nstuck_after = 2\n[metrics]\nlisten = 9464\n")
            assert "metrics.listen: as before" in hang_up(watcher, 2)[0]
            opened = watcher.wait_for("opened")
            assert opened["affected"][0]["pid"] == agent.own_pid(worker)
            assert watcher.end() == 0


def test_check_config_says_what_is_in_force_or_what_is_wrong(tmp_path: Path):
    file = tmp_path / "agent.toml"
    file.write_text('[sentry]\ndsn = "https://abcdef@sentry.example/1"\n[journal]\nage = "1d"\n')
    done = command.run("agent", "--check-config", "--config", file, "--interval", 1, env={"STUCKTRACE_NODE": "node-7"})
    assert done.status == 0 and done.stderr == "" and "abcdef" not in done.stdout
    found = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "86400" in found["journal.age"] and found["journal.age"].endswith(f"{file} line 4")
    assert '"node-7"' in found["agent.node"] and found["agent.interval"].endswith("--interval")

    file.write_text("[journal]\nages = 1\nbytes = 1\n")
    for options in (("--check-config",), ()):
        done = command.run("agent", *options, "--config", file)
        assert done.status == 2 and done.stdout == ""
        assert done.stderr.splitlines() == [
            f"stucktrace: {file} line 2: journal.ages is not a setting; did you mean journal.age?",
            f'stucktrace: {file} line 3: journal.bytes: 1 is not a size from 1 MB on, like "256MB" or a number of bytes',
        ]
    done = command.run("agent", "--check-config", "--config", tmp_path / "none")
    assert done.status == 2 and "No such file" in done.stderr


def test_metrics_and_a_collector_beside_stdout():
    with (
        namespaces.pair() as pair,
        collector(namespaces.listen(pair.here)) as to,
        targets.start("http_holder.py", "deaf", netns=pair.here) as holder,
        agent.gunicorn("-k", "gthread", "--threads", 2, netns=pair.here) as server,
    ):
        options = ("--stuck-after", 2, "--metrics", PORT, "--otlp-endpoint", to.url)

        def figures() -> dict[tuple[str, ...], float]:
            return scraped(pair.here)

        with agent.watching(server.master, *options, netns=pair.here) as watcher:
            assert get(pair.here, "/healthz").strip() == "ok"
            with server.request(f"/fetch?url=http://127.0.0.1:{holder.said}/"):
                opened = watcher.wait_for("opened")
                code = opened["code"]
                kernel.wait_until(lambda: figures().get(("stucktrace_alerts_opened_total", code)), "the figure")
                # Runs are counted in the first second of each minute.
                kernel.wait_until(
                    lambda: figures().get(("stucktrace_bpf_runs_total", "inflight")), "the kernel's count"
                )
                found = figures()
                assert found["stucktrace_alerts_open", code, opened["severity"]] == 1
                assert found["stucktrace_affected_processes", code] == 1
                assert found["stucktrace_watched_processes", "gunicorn-worker"] == 1
                assert found["stucktrace_watched_processes", "gunicorn-master"] == 1
                assert found["stucktrace_examination_duration_seconds_count",] >= 1
                assert found["stucktrace_glance_duration_seconds_count",] >= 1
                assert found["stucktrace_alert_delay_seconds_count",] == 1
                assert 10e6 < found["stucktrace_resident_memory_bytes",] < 300e6
                assert found["stucktrace_cpu_seconds_total",] > 0
                assert found["stucktrace_lost_records_total",] == 0
                assert found["stucktrace_sink_delivered_total", "stdout"] >= 1
                (record,) = to.next("/v1/logs").resource_logs[0].scope_logs[0].log_records
                assert values(record.attributes)["stucktrace.alert.id"] == opened["id"]
                names = {metric.name for metric in to.next("/v1/metrics").resource_metrics[0].scope_metrics[0].metrics}
                assert "stucktrace.watched_processes" in names
            os.kill(server.workers[0], signal.SIGKILL)
            resolved = watcher.wait_for("resolved")
            kernel.wait_until(
                lambda: figures().get(("stucktrace_alerts_resolved_total", code, resolved["how"])) == 1, "the figure"
            )
            assert not figures().get(("stucktrace_alerts_open", code, opened["severity"]))
            assert watcher.end() == 0


def test_an_address_that_is_taken_ends_the_agent_in_one_line():
    with namespaces.pair() as pair, namespaces.listen(pair.here) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = command.run("agent", "--metrics", address, prefix=["ip", "netns", "exec", pair.here])
        assert done.status == 3 and f"metrics on {address}" in done.stderr and done.stderr.count("\n") == 1


def test_over_its_budget_it_does_less_and_says_so(tmp_path: Path):
    file = tmp_path / "agent.toml"
    file.write_text(f"[agent]\ninterval = 0.05\ncpu_budget = 0.001\n[metrics]\nlisten = {PORT}\n")
    with namespaces.pair() as pair, agent.gunicorn(netns=pair.here) as server:
        with agent.watching(server.master, "--config", file, netns=pair.here) as watcher:
            kernel.wait_until(lambda: "over its own budget" in watcher.said(), "the agent's words")
            assert watcher.said().count("over its own budget") == 1
            kernel.wait_until(lambda: scraped(pair.here).get(("stucktrace_shed_level",)), "the figure")
            assert watcher.end() == 0
