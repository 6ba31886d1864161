"""Whether `acquire()` by hand is behind every way to a line."""

import textwrap

import pytest
from stucktrace.collectors.acquire_lines import Function

HELD = {
    "before": """
        def run(self):
            self.lock.acquire()
            here()
            self.lock.release()
    """,
    "before a try": """
        def run(self):
            self.lock.acquire()
            try:
                here()
            finally:
                self.lock.release()
    """,
    "in the try": """
        def run(self):
            try:
                self.lock.acquire()
                if self.ready:
                    here()
            finally:
                self.lock.release()
    """,
    "in the same round of a loop": """
        @decorated
        async def run(
            self,
        ) -> None:
            while True:
                self.lock.acquire(True)
                with other:
                    here()
                self.lock.release()
    """,
    "refused and left": """
        def run(self):
            if not self.lock.acquire(timeout=1):
                raise TimeoutError
            here()
    """,
    "granted": """
        def run(self):
            if self.lock.acquire(blocking=False):
                here()
    """,
    "taken again": """
        def run(self):
            self.lock.acquire()
            self.lock.release()
            ok = self.lock.acquire()
            here()
    """,
    "before a loop that keeps it": """
        def run(self):
            self.lock.acquire()
            for each in self.all:
                here(each)
    """,
}
NOT_HELD = {
    "released": """
        def run(self):
            self.lock.acquire()
            self.lock.release()
            here()
    """,
    "the acquire itself": """
        def run(self):
            here(self.lock.acquire())
    """,
    "later in the loop": """
        def run(self):
            while True:
                here()
                self.lock.acquire()
                self.lock.release()
    """,
    "in a branch": """
        def run(self):
            if self.first:
                self.lock.acquire()
            here()
    """,
    "in the other branch": """
        def run(self):
            if self.first:
                self.lock.acquire()
            else:
                here()
    """,
    "it may have failed": """
        def run(self):
            got = self.lock.acquire(timeout=1)
            here()
    """,
    "refused": """
        def run(self):
            if self.lock.acquire(False):
                work()
            else:
                here()
    """,
    "released in the loop": """
        def run(self):
            self.lock.acquire()
            while True:
                here()
                self.lock.release()
                self.lock.acquire()
    """,
    "released in the finally": """
        def run(self):
            self.lock.acquire()
            try:
                work()
            finally:
                self.lock.release()
            here()
    """,
    "released before it is over": """
        def run(self):
            self.lock.acquire()
            try:
                self.lock.release()
                work()
            except OSError:
                here()
    """,
    "in a function of its own": """
        def run(self):
            def take():
                self.lock.acquire()
            here()
    """,
    "another lock": """
        def run(self):
            self.other.acquire()
            here()
    """,
    "no Python": """
        def run(self:
            self.lock.acquire()
            here()
    """,
}


def held(code):
    text = "import this\n" + textwrap.indent(textwrap.dedent(code), "    ")
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.strip()[:3] in ("@de", "asy", "def"))
    here = next(number for number, line in enumerate(lines, 1) if "here(" in line)
    found = Function("class Any:\n" + text, first + 1, "run").acquired({"self.lock"}, here + 1)
    return "acquire" in ("class Any:\n" + text).splitlines()[found - 1] if found else False


@pytest.mark.parametrize("case", HELD)
def test_it_is_held(case):
    assert held(HELD[case])


@pytest.mark.parametrize("case", NOT_HELD)
def test_nothing_is_certain(case):
    assert not held(NOT_HELD[case])


def test_a_module_and_a_function_that_is_not_there():
    assert Function("lock.acquire()\nhere()\n", 0, "<module>").acquired({"lock"}, 2) == 1
    assert not Function("lock.acquire()\nhere()\n", 1, "run").known
    assert not Function("", 5, "run").known


def test_what_a_function_releases():
    text = "def run(self):\n    with self.lock:\n        self.lock.release()\n        def other(): lock.release()\n"
    function = Function(text, 1, "run")
    assert function.releases({"self.lock"}) and not function.releases({"lock"})


def test_deep_expressions_and_what_the_parser_warns_of(recwarn: pytest.WarningsRecorder):
    text = (
        "def f(lock):\n    lock.acquire()\n    x = "
        + " + ".join(["1"] * 2000)
        + '\n    y = "\\d"\n    lock.release()\n'
    )
    assert Function(text, 1, "f").acquired({"lock"}, 4) == 2
    assert Function(text, 1, "f").releases({"lock"})
    assert not recwarn.list
