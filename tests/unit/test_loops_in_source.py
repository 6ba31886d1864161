"""Which variables may be left over from an earlier turn of a loop, or were given back."""

import pytest
from stucktrace.collectors import loops

CASES = {
    "two in a row": ("def f(pool):\n    first = pool.get()\n    second = pool.get()\n", 3, []),
    "a consumer": ("def f(q):\n    while True:\n        first = q.get()\n        work(first)\n", 3, ["first"]),
    "its iterator": ("def f(q):\n    for first in iter(q.get, None):\n        work(first)\n", 2, ["first"]),
    "a walrus": ("def f(q):\n    while (first := q.get()):\n        work(first)\n", 2, ["first"]),
    "the last one": ("def f(q):\n    while True:\n        job = q.get()\n        first = job\n", 3, ["first"]),
    "in its turn": ("def f(q):\n    while True:\n        first = q.get()\n        log = q.get()\n", 4, []),
    "given back": ("def f(p):\n    first = p.get()\n    p.putconn(first)\n    log = p.get()\n", 4, ["first"]),
    "closed": ("def f(p):\n    first = p.get()\n    first.close()\n    log = p.get()\n", 4, ["first"]),
    "over two lines": ("def f(p):\n    job = (\n        p.get()\n    )\n", 2, ["first"]),
    "a very long line in the loop": (
        f"def f(q):\n    while True:\n        first = q.get()\n        a({', '.join(['first: x'] * 9999)})\n        work(first)\n",
        5,
        ["first"],
    ),
    "a very long line above": (
        f"def f(p):\n    first = p.get()\n    a = {'first, ' * 9999}\n    log = p.get()\n",
        4,
        ["first"],
    ),
    "no such line": ("", 3, ["first"]),
}


@pytest.mark.parametrize("case", CASES)
def test_left_over(case: str):
    text, line, wanted = CASES[case]
    assert loops.stale(text.splitlines(), line, ["first"]) == wanted
