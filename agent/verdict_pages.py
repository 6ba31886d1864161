"""The page of each verdict code, taken from the docstring of the rule that gives it.

A page begins at a line "`code`: what it is." of a function's docstring in stucktrace.diagnosis; further codes on that
line are what a check says where all is well. Then come paragraphs, each of them under a label or none:

    (none)                     what it means
    Proven, Likely, Possible   what proves it; of a check: Error, Warn, Remark
    Now, Later                 what to do
    Not, Wrong                 what it is not, and where it can be wrong all the same
    Try                        how to try it

A docstring may hold several pages. Under `python -OO` there are none.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from stucktrace.diagnosis.model import ADVICE, CODES, EXIT_STATUS

AUDIT, CONNTRACK = "audit", "conntrack"
"""The commands whose checks have codes of their own."""
WIDTH = 100
CONFIDENCES = ("Proven", "Likely", "Possible", "Error", "Warn", "Remark")
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "What it means": ("",),
    "What proves it": CONFIDENCES,
    "What to do now": ("Now",),
    "What to change later": ("Later",),
    "What it is not": ("Not",),
    "Where it can be wrong": ("Wrong",),
    "How to try it": ("Try",),
}
"""Heading -> the labels of its paragraphs."""
_TITLE = re.compile(r"(`[a-z][a-z-]*`(?:, `[a-z][a-z-]*`)*): (.+)", re.DOTALL)
_LABEL = re.compile(rf"({'|'.join(label for labels in SECTIONS.values() for label in labels if label)}): ")


@dataclass(frozen=True)
class Page:
    code: str
    also: tuple[str, ...]
    """Codes of the same question where all is well."""
    title: str
    rule: str
    """ "agent/diagnosis/network_outage.py: half_open"."""
    parts: tuple[tuple[str, str], ...]
    """(label, paragraph) in the docstring's order, on lines as they stand there."""

    @property
    def code_class(self) -> str:
        """The verdict's, or the command whose check it is."""
        return CODES.get(self.code, CONNTRACK if "/conntrack" in self.rule else AUDIT)


def pages() -> Mapping[str, Page]:
    """Code -> its page, in the order of the rules' files; empty where docstrings were stripped."""
    found: dict[str, Page] = {}
    for module in _modules():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and function.__doc__:
                rule = f"agent/diagnosis/{module.__name__.rpartition('.')[2]}.py: {name}"
                for page in parse(function.__doc__, rule):
                    if page.code in found:
                        raise ValueError(f"{page.code} has two pages: {found[page.code].rule} and {rule}")
                    found[page.code] = page
    return found


def named(all_pages: Mapping[str, Page], code: str) -> Page | None:
    """The page of a code, or of the question that it answers with "all is well"."""
    return all_pages.get(code) or next((page for page in all_pages.values() if code in page.also), None)


def _modules() -> Iterator[ModuleType]:
    from stucktrace import diagnosis

    for module in pkgutil.iter_modules(diagnosis.__path__):
        yield importlib.import_module(f"{diagnosis.__name__}.{module.name}")


def parse(docstring: str, rule: str) -> Iterator[Page]:
    """The pages of one docstring."""
    codes: list[str] = []
    title, label = "", ""
    parts: list[tuple[str, str]] = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(docstring))):
        begins = _TITLE.fullmatch(paragraph)
        if begins and (codes or not number):
            if codes:
                yield Page(codes[0], tuple(codes[1:]), title, rule, tuple(parts))
            codes = re.findall(r"`([a-z-]+)`", begins[1])
            title, label, parts = " ".join(begins[2].split()).removesuffix("."), "", []
        elif codes:
            labelled = _LABEL.match(paragraph)
            # A paragraph without a label goes on with the one before it.
            label = labelled[1] if labelled else label
            parts.append((label, paragraph[labelled.end() :] if labelled else paragraph))
    if codes:
        yield Page(codes[0], tuple(codes[1:]), title, rule, tuple(parts))


def text(page: Page) -> str:
    """The page as Markdown that reads well in a terminal too."""
    lines = [f"# {page.code}", "", *_wrapped(f"{page.title[0].upper()}{page.title[1:]}."), "", *_wrapped(_about(page))]
    for heading, labels in SECTIONS.items():
        parts = [(label, paragraph) for label, paragraph in page.parts if label in labels]
        if parts:
            lines += ["", f"## {heading}"]
        before = ""
        for label, paragraph in parts:
            if label != before:
                paragraph = f"{label}: {paragraph}" if label in CONFIDENCES else paragraph[0].upper() + paragraph[1:]
            lines += ["", *_laid_out(paragraph)]
            before = label
    return "\n".join(lines) + "\n"


def _about(page: Page) -> str:
    kind = page.code_class
    said = f"Class {kind}: exit status {EXIT_STATUS.get(kind)} of `stucktrace pid`"
    if kind in (AUDIT, CONNTRACK):
        said = f"Said by `stucktrace {kind}`" + "".join(f"; `{code}` where all is well" for code in page.also)
    elif "/incident" in page.rule:
        said = f"Class {kind}, told by `stucktrace agent`"
    elif kind == ADVICE:
        said = f"Class {kind}: it stands beside a verdict, and is never one itself"
    return f"{said}. Rule: `{page.rule.replace(': ', '`, `')}`."


def _laid_out(paragraph: str) -> list[str]:
    """Code as it stands, items of a list one by one, all else filled."""
    if paragraph.startswith("    "):
        return paragraph.split("\n")
    items = re.split(r"\n(?=- )", paragraph)
    return [line for item in items for line in _wrapped(item, "  " if item.startswith("- ") else "")]


def _wrapped(words: str, indent: str = "") -> list[str]:
    # A number stays with its unit.
    joined = re.sub(r"(\d) (?=(?:s|min|h|kB|MB|MiB|%)\b|%)", "\\1\0", " ".join(words.split()))
    lines = textwrap.wrap(joined, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def index(all_pages: Mapping[str, Page]) -> str:
    """The table of contents beside the pages."""
    heads = {
        "stuck": "It does not go on",
        "advice": "It works, and will hurt",
        "healthy": "It is healthy",
        "unknown": "It could not be told",
        AUDIT: "What `stucktrace audit` finds in settings and connections",
        CONNTRACK: "What `stucktrace conntrack` finds in the tables of a node",
    }
    said = "`stucktrace explain CODE` prints the same pages: `make docs` writes them from the docstrings of the rules."
    lines = ["# Verdicts", "", said]
    for kind, head in heads.items():
        lines += ["", f"## {head}", ""]
        for page in sorted(all_pages.values(), key=lambda each: each.code):
            if page.code_class == kind:
                lines.append(f"- [{page.code}]({page.code}.md): {page.title}")
    return "\n".join(lines) + "\n"


def write(directory: str) -> None:
    """All pages as files, and the table of contents; files of codes that are gone are removed."""
    folder, found = Path(directory), pages()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        if path.stem not in (*found, "README"):
            path.unlink()
    for code, page in found.items():
        (folder / f"{code}.md").write_text(text(page))
    (folder / "README.md").write_text(index(found))
