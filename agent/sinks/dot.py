"""The graph of a report in Graphviz's language: `stucktrace pid PID --dot | dot -Tsvg`.

One digraph a process. The way from the verdict's thread on is red; where it ends, or runs in a circle, is filled.
Names come from the target: each is one quoted string, with control characters written as escapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stucktrace.sinks.page import clean

Json = dict[str, Any]

_SHAPES = {
    "thread": "box",
    "lock": "hexagon",
    "file": "note",
    "socket": "cds",
    "peer": "ellipse",
    "pipe": "cylinder",
    "process": "component",
    "pool": "folder",
    "absent": "box",
}
_LONGEST_LABEL = 500
_LINE = 40


def render(report: Json) -> str:
    """The whole digraph, ending with a newline."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Json) -> Iterator[str]:
    verdict, graph = report["verdict"], report["graph"]
    after: dict[str, list[str]] = {}
    for edge in graph["edges"]:
        after.setdefault(edge["from"], []).append(edge["to"])
    start = f"thread:{verdict['tid']}" if verdict["tid"] is not None else ""
    reached = _reached(after, start) | {start}
    nodes = dict.fromkeys([*graph["nodes"], *([start] if start else [])])
    title = f"{verdict['code']} ({verdict['confidence']}): {verdict['summary']}"
    yield f'digraph "pid {report["process"]["pid"]}" {{'
    yield f"  label={_label(title, 100)};"
    yield "  labelloc=t; labeljust=l; rankdir=LR;"
    yield '  node [fontname="sans-serif", fontsize=10]; edge [fontname="sans-serif", fontsize=9];'
    for node in nodes:
        marked = node in reached
        last = marked and (not after.get(node) or node in _reached(after, node))
        yield f"  {_quoted(node)} [{', '.join(_attributes(node, graph['labels'], marked, last))}];"
    for edge in graph["edges"]:
        colour = ", color=red, penwidth=2" if edge["from"] in reached else ""
        yield f"  {_quoted(edge['from'])} -> {_quoted(edge['to'])} [label={_label(edge['label'] or '')}{colour}];"
    yield "}"


def _attributes(node: str, labels: Mapping[str, str], marked: bool, last: bool) -> Iterator[str]:
    kind = node.partition(":")[0]
    yield f"label={_label(labels.get(node, node))}"
    yield f"shape={_SHAPES.get(kind, 'box')}"
    styles = [*(["dashed"] if kind == "absent" else []), *(["filled"] if last else [])]
    if styles:
        yield f'style="{",".join(styles)}"'
    if marked:
        yield "color=red, penwidth=2"
    if last:
        yield "fillcolor=mistyrose"


def _reached(after: Mapping[str, list[str]], start: str) -> set[str]:
    """What follows from this node, and it itself only where the way leads back to it."""
    found: set[str] = set()
    waiting = list(after.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(after.get(node, ()))
    return found


def _label(text: str, width: int = _LINE) -> str:
    """Broken between words into lines of about `width`."""
    lines = [""]
    for word in clean(text, _LONGEST_LABEL).split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return '"' + "\\n".join(map(_escaped, lines)) + '"'


def _quoted(name: str) -> str:
    return f'"{_escaped(clean(name, _LONGEST_LABEL))}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
