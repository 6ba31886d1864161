"""Each code that the diagnosis can give has a page in the docstring of its rule, and docs/ and `explain` show that page."""

import ast
import json
import re
from pathlib import Path

import pytest
from stucktrace import diagnosis, verdict_pages
from stucktrace.diagnosis.model import CODES

from tests.harness import command

ROOT = Path(__file__).parents[2]
PAGES = verdict_pages.pages()
RULES = [
    ast.parse(path.read_text())
    for path in sorted(Path(diagnosis.__file__).resolve().parent.glob("*.py"))
    if path.name != "model.py"
]


def given(call: str) -> set[str]:
    """The codes that rules write out as the first argument of Finding() or Check()."""
    return {
        node.args[0].value
        for rule in RULES
        for node in ast.walk(rule)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == call
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_code_has_a_page_and_every_page_a_code():
    findings, checks = given("Finding"), given("Check")
    assert len(findings) > 20 and len(checks) > 20
    said = {
        node.value
        for rule in RULES
        for node in ast.walk(rule)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert findings <= CODES.keys() <= said
    paged = [code for page in PAGES.values() for code in (page.code, *page.also)]
    assert sorted(paged) == sorted(CODES.keys() | checks)


@pytest.mark.parametrize("code", PAGES)
def test_a_page_says_all_that_one_needs(code: str):
    page = PAGES[code]
    labels = {label for label, _ in page.parts}
    assert {"", "Not", "Try"} <= labels and labels & set(verdict_pages.CONFIDENCES), labels
    if page.code_class in ("stuck", "advice"):
        assert {"Later", "Wrong"} <= labels and labels & {"Proven", "Likely"}
    if page.code_class == "stuck":
        assert "Now" in labels
    if code not in CODES:
        assert "Later" in labels and labels & {"Error", "Warn", "Remark"}
    shown = verdict_pages.text(page)
    assert all(len(line) <= verdict_pages.WIDTH or line.startswith("    ") for line in shown.splitlines())


def test_the_tests_that_pages_name_are_there():
    names = " ".join(path.read_text() for path in (ROOT / "tests/live").glob("*.py"))
    for page in PAGES.values():
        for _, paragraph in page.parts:
            for word in re.findall(r"make test T=(\w+)", paragraph):
                assert re.search(rf"def \w*{word}", names), word


def test_docs_are_in_step():
    """`make docs` writes them."""
    folder = ROOT / "docs/verdicts"
    assert {path.name for path in folder.iterdir()} == {f"{code}.md" for code in PAGES} | {"README.md"}
    for code, page in PAGES.items():
        assert (folder / f"{code}.md").read_text() == verdict_pages.text(page), f"make docs: {code}"
    assert (folder / "README.md").read_text() == verdict_pages.index(PAGES), "make docs"


def test_explain_prints_the_same_page():
    done = command.run("explain", "half-open")
    assert (done.status, done.stdout) == (0, (ROOT / "docs/verdicts/half-open.md").read_text())
    answer = json.loads(command.run("explain", "--json", "timeout").stdout)
    assert (answer["code"], answer["class"], answer["page"]) == (
        "timeout-off",
        "audit",
        verdict_pages.text(PAGES["timeout-off"]),
    )
    listed = command.run("explain").stdout.splitlines()
    assert sorted(line.split()[0] for line in listed) == sorted(PAGES)
    assert {line.split()[0]: line.split()[1] for line in listed}.items() >= CODES.items()


def test_a_code_that_is_not_there():
    done = command.run("explain", "halfopen")
    assert (done.status, done.stdout) == (2, "")
    assert "did you mean half-open" in done.stderr and done.stderr.count("\n") == 1


def test_without_docstrings_it_says_so_in_a_line():
    done = command.run("explain", "idle", env={"PYTHONOPTIMIZE": "2"})
    assert (done.status, done.stdout) == (3, "")
    assert "-OO" in done.stderr and done.stderr.count("\n") == 1


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_relative_links_lead_somewhere():
    pages = [
        path
        for path in ROOT.rglob("*.md")
        if not {".venv", "build", "node_modules"} & set(path.relative_to(ROOT).parts)
    ]
    links = 0
    for page in pages:
        prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in {slug(h) for h in re.findall(r"^#+ (.+)$", there.read_text(), flags=re.M)}, (
                    f"{page.name}: {target}"
                )
    assert links > 20
