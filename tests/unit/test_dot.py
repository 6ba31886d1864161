"""The graph in Graphviz's language: Graphviz itself reads it, whatever a stranger calls his threads."""

import re
import subprocess
from typing import Any

import pytest
from stucktrace.sinks.dot import render

from tests.unit.test_text import finding, report


def drawn(edges: list[tuple[str, str, str]], labels: dict[str, str] | None = None, **verdict: Any) -> str:
    nodes = list(dict.fromkeys(node for edge in edges for node in edge[:2]))
    graph = {
        "nodes": nodes,
        "edges": [{"from": source, "to": target, "label": label} for source, target, label in edges],
        "labels": labels or {},
    }
    return render(report(graph=graph, verdict=finding(**verdict)))


def as_plain(text: str) -> list[list[str]]:
    done = subprocess.run(["dot", "-Tplain"], input=text, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
    return [line.split(" ") for line in done.stdout.replace("\\\n", "").splitlines()]


def test_the_way_from_the_verdict_is_red_and_its_end_filled():
    edges = [
        ("thread:7", "lock:0x1", "futex"),
        ("lock:0x1", "thread:8", "held by"),
        ("thread:8", "socket:5", "recvfrom"),
        ("thread:9", "lock:0x1", "futex"),
    ]
    text = drawn(edges)
    red = set(re.findall(r'^  "([^"]*)" \[.*color=red', text, re.MULTILINE))
    assert red == {"thread:7", "lock:0x1", "thread:8", "socket:5"}
    assert re.findall(r'^  "([^"]*)" \[.*filled', text, re.MULTILINE) == ["socket:5"]
    assert len(re.findall(r" -> .*color=red", text)) == 3
    assert [line[0] for line in as_plain(text)].count("node") == 5


def test_a_circle_is_filled_as_a_whole():
    edges = [
        ("thread:7", "lock:1", ""),
        ("lock:1", "thread:8", ""),
        ("thread:8", "lock:2", ""),
        ("lock:2", "thread:7", ""),
    ]
    assert drawn(edges).count("filled") == 4


def test_a_thread_alone_is_drawn():
    assert [line[1] for line in as_plain(drawn([])) if line[0] == "node"] == ['"thread:7"']


@pytest.mark.parametrize(
    "name",
    [
        'say "hi"',
        "back\\",
        "a\\nb",
        "\x1b[31m\x00",
        "<b>x</b>",
        "\u202etxt",
        "{a|b}",
        "];}",
        'x"]; evil [label="',
        "é" * 900,
    ],
)
def test_a_strangers_name_stays_one_string(name: str):
    text = drawn([("thread:7", f"file:/tmp/{name}", name)], {"thread:7": name}, summary=name)
    assert text.isprintable() or set(filter(lambda char: not char.isprintable(), text)) == {"\n"}
    kinds = [line[0] for line in as_plain(text)]
    assert (kinds.count("node"), kinds.count("edge")) == (2, 1)
    subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, timeout=60, check=True)
