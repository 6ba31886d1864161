"""`stucktrace explain`: what a verdict code means, what proves it, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import click
from stucktrace.commands.common import json_option, leave
from stucktrace.errors import CannotInspect, UsageError
from stucktrace.output import write, write_json

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from stucktrace.verdict_pages import Page

SCHEMA = "stucktrace.explain/1"
STRIPPED = "this Python keeps no docstrings (-OO, PYTHONOPTIMIZE=2), and those hold the pages"


def _complete(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem
    from stucktrace.verdict_pages import pages

    return [CompletionItem(code, help=page.title) for code, page in pages().items() if code.startswith(typed)]


@click.command("explain")
@json_option(f"One JSON object a line, schema {SCHEMA}.")
@click.argument("codes", metavar="[CODE]...", nargs=-1, shell_complete=_complete)
def command(codes: tuple[str, ...], as_json: bool) -> NoReturn:
    """What the verdict CODE means: what proves it, what to do now and later, what it is not, how to try it.

    Without CODE: all codes, each with its class and a line. docs/verdicts has the same pages.
    """
    from stucktrace.verdict_pages import pages

    found = pages()
    if not found:
        raise CannotInspect(STRIPPED, "run it without, or read docs/verdicts")
    if not codes:
        _all(found, as_json)
    else:
        for number, page in enumerate([_page(found, code) for code in codes]):
            _one(page, as_json, first=not number)
    leave(0)


def _all(found: Mapping[str, Page], as_json: bool) -> None:
    if as_json:
        codes = [{"code": page.code, "class": page.code_class, "title": page.title} for page in found.values()]
        write_json({"schema": SCHEMA, "codes": codes})
        return
    order = ("stuck", "advice", "healthy", "unknown", "audit", "conntrack")
    ordered = sorted(found.values(), key=lambda page: (order.index(page.code_class), page.code))
    wide = max(len(page.code) for page in ordered)
    write("".join(f"{page.code:<{wide}}  {page.code_class:<9}  {page.title}\n" for page in ordered))


def _page(found: Mapping[str, Page], code: str) -> Page:
    from stucktrace.verdict_pages import named

    page = named(found, code.lower())
    if page is None:
        raise UsageError(f"there is no verdict {code[:40]!r}", _nearest(found, code.lower()))
    return page


def _one(page: Page, as_json: bool, *, first: bool) -> None:
    from stucktrace.verdict_pages import text

    if not as_json:
        write(text(page) if first else f"\n{text(page)}")
        return
    parts = [{"label": label.lower() or "means", "text": paragraph} for label, paragraph in page.parts]
    about = {"code": page.code, "class": page.code_class, "title": page.title, "rule": page.rule}
    write_json({"schema": SCHEMA, **about, "parts": parts, "page": text(page)})


def _nearest(found: Mapping[str, Page], code: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(code, list(found), 3, 0.6)
    return (f"did you mean {' or '.join(near)}? " if near else "") + "`stucktrace explain` lists all"
