"""agent/privileges.py is true: what it documents is enough, each capability is needed, and its absence is named."""

from __future__ import annotations

from tests import privileges as page


def test_the_page_is_written_from_the_data():
    assert page.PAGE.read_text() == page.page(), "run python -m tests.privileges"
