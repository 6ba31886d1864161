"""Lines of text for a terminal, of a fixed width, in which nothing that a target says can move the cursor."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

LONGEST_TEXT = 2_000
_BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """`text` on one line, with what could move a terminal's cursor or order written as an escape."""
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isprintable() and not _BIDIRECTIONAL.intersection(text):
        return text
    return "".join(
        char if char.isprintable() and char not in _BIDIRECTIONAL else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


class Page:
    """Lines of a fixed width, with headings."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width = max(width, 40)
        self.colour = colour
        self.lines: list[str] = []

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def heading(self, text: str) -> None:
        self.lines.append("")
        self.lines.append(self.paint(text, "1"))

    def text(self, text: str, indent: str = "  ", hanging: str | None = None, code: str = "") -> None:
        wrapped = textwrap.wrap(
            clean(text),
            self.width,
            initial_indent=indent,
            subsequent_indent=indent if hanging is None else hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.lines.extend(self.paint(line, code) if code else line for line in wrapped)

    def items(self, texts: Iterable[str], mark: str = "- ") -> None:
        for text in texts:
            self.text(text, "  " + mark, "  " + " " * len(mark))
