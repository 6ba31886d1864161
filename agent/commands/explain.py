"""`stucktrace explain`: what a verdict code means, what proves it, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import click
from stucktrace.commands.common import json_option, leave
from stucktrace.errors import UsageError
from stucktrace.output import write, write_json

if TYPE_CHECKING:
    from stucktrace.verdict_pages import Page

SCHEMA = "stucktrace.explain/1"
STRIPPED = (
    "this Python keeps no docstrings (-OO, PYTHONOPTIMIZE=2), and those hold the pages: run it without, or read "
    "docs/verdicts"
)


@click.command("explain")
@json_option(f"One JSON object, schema {SCHEMA}.")
@click.argument("code", required=False)
def command(code: str | None, as_json: bool) -> NoReturn:
    """What the verdict CODE means: what proves it, what to do now and later, what it is not, how to try it.

    Without CODE: all codes, each with its class and a line. docs/verdicts has the same pages.
    """
    from stucktrace.verdict_pages import pages

    found = pages()
    if not found:
        write_json({"schema": SCHEMA, "error": STRIPPED}) if as_json else write(f"{STRIPPED}\n")
    elif code is None:
        _all(found, as_json)
    else:
        _one(found, code, as_json)
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


def _one(found: Mapping[str, Page], code: str, as_json: bool) -> None:
    from stucktrace.verdict_pages import named, text

    page = named(found, code.lower())
    if page is None:
        raise UsageError(f"there is no verdict {code[:40]!r}", _nearest(found, code.lower()))
    if not as_json:
        write(text(page))
        return
    parts = [{"label": label.lower() or "means", "text": paragraph} for label, paragraph in page.parts]
    about = {"code": page.code, "class": page.code_class, "title": page.title, "rule": page.rule}
    write_json({"schema": SCHEMA, **about, "parts": parts, "page": text(page)})


def _nearest(found: Mapping[str, Page], code: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(code, list(found), 3, 0.5)
    return (f"did you mean {' or '.join(near)}? " if near else "") + "`stucktrace explain` lists all"
