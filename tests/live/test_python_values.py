"""Objects read from the memory of live interpreters: what they are, and nothing where they are something else."""

from datetime import datetime

import pytest
from stucktrace.collectors import interpreter, regions
from stucktrace.collectors.cpython_objects import Layout, Reader
from stucktrace.collectors.python_values import Values

from tests.harness import pythons

INTERPRETERS = [
    pytest.param(path, id=pythons.name_of(path))
    for path in pythons.interpreters()
    if not pythons.name_of(path).startswith(("3.6", "3.7"))
]

TARGET = """
import datetime, time
class Plain:
    def __init__(self):
        self.first, self.second = "one", 2
class Slots:
    __slots__ = ("first",)
texts = ["", "plain", "caf\\u00e9", "\\u043f\\u0443\\u0442\\u044c", "\\U0001f600!", "x" * 5000]
integers = [0, 1, -1, 2**30, -(2**31), 2**63, 10**30]
numbers = [0.0, -1.5, time.time()]
pairs = (1, "two")
table = {"REQUEST_METHOD": "GET", "PATH_INFO": "/x"}
mixed = {1: "a", "PATH_INFO": "/y", None: 3}
shrunk = {str(number): number for number in range(1000)}
for number in range(990):
    del shrunk[str(number)]
plain, many, slots = Plain(), Plain(), Slots()
for number in range(40):
    setattr(many, "more%d" % number, number)
grown = Plain()
grown.__dict__
attributes = vars(Plain())
slots.first = 1
moments = [datetime.datetime(2024, 2, 29, 23, 59, 58, 999999), datetime.datetime.now(datetime.timezone.utc)]
class Text(str): pass
odd = Text("secret")
def cell():
    value = "kept"
    return (lambda: value).__closure__[0]
kept = cell()
def where(value): return ",".join(str(id(each)) for each in value)
print("ready", *["%s=%s" % (name, where(value if isinstance(value, list) else [value])) for name, value in dict(
    texts=texts, integers=integers, numbers=numbers, pairs=pairs, table=table, mixed=mixed, shrunk=shrunk,
    attributes=attributes, plain=plain, many=many, grown=grown, slots=slots, moments=moments, odd=odd, kept=kept).items()])
time.sleep(600)
"""


@pytest.fixture(params=INTERPRETERS, scope="module")
def target(request):
    with pythons.run(TARGET, python=request.param) as child:
        mapped = regions.read(child.pid)
        found = interpreter.find(child.pid, mapped)
        at = {
            name: [int(each) for each in where.split(",")] for name, where in (word.split("=") for word in child.words)
        }
        yield Values(Reader(child.pid, mapped, Layout()), found.minor), at


def test_strings_of_every_width(target):
    values, at = target
    assert [values.text(each, 100) for each in at["texts"]] == ["", "plain", "café", "путь", "😀!", "x" * 100]


def test_a_subclass_of_str_is_something_else(target):
    values, at = target
    assert values.text(at["odd"][0], 100) is None


def test_numbers(target):
    values, at = target
    assert [values.integer(each) for each in at["integers"]] == [0, 1, -1, 2**30, -(2**31), 2**63, 10**30]
    assert [values.number(each) for each in at["numbers"][:2]] == [0.0, -1.5]


def test_a_tuple_and_a_cell(target):
    values, at = target
    one, two = values.items(at["pairs"][0])
    assert (values.integer(one), values.text(two, 10)) == (1, "two")
    assert values.text(values.content(at["kept"][0]), 10) == "kept"


def test_dicts(target):
    values, at = target
    found = values.entries(at["table"][0], ("PATH_INFO", "REQUEST_METHOD", "QUERY_STRING"))
    assert {name: values.text(each, 10) for name, each in found.items()} == {"PATH_INFO": "/x", "REQUEST_METHOD": "GET"}
    assert values.text(values.entries(at["mixed"][0], ("PATH_INFO",))["PATH_INFO"], 10) == "/y"
    shrunk = values.entries(at["shrunk"][0], ("1", "995"))
    assert {name: values.integer(each) for name, each in shrunk.items()} == {"995": 995}
    assert values.text(values.entries(at["attributes"][0], ("first",))["first"], 10) == "one"


@pytest.mark.parametrize("name", ["plain", "many", "grown"])
def test_attributes(target, name):
    values, at = target
    assert values.text(values.attribute(at[name][0], "first"), 10) == "one"
    assert values.integer(values.attribute(at[name][0], "second")) == 2
    assert values.attribute(at[name][0], "third") is None


def test_an_instance_without_a_dict_has_no_attributes(target):
    values, at = target
    assert values.attribute(at["slots"][0], "first") is None


def test_a_moment_without_a_time_zone(target):
    values, at = target
    assert values.moment(at["moments"][0]) == datetime(2024, 2, 29, 23, 59, 58, 999999)
    assert values.moment(at["moments"][1]) is None


def test_nothing_is_guessed(target):
    values, at = target
    text, table = at["texts"][1], at["table"][0]
    for address in (0, 8, 1 << 46, text + 8, text + 1, table, at["numbers"][0]):
        assert values.text(address, 10) is None
        assert values.integer(address) is None
        assert values.items(address) is None
        assert values.content(address) is None
        assert values.moment(address) is None
    for address in (0, 8, 1 << 46, text, table + 8):
        assert values.entries(address, ("PATH_INFO",)) is None
        assert values.number(address) is None
        assert values.attribute(address, "first") is None
