"""The value of a plain Python object in another process's memory: None, bool, int, float, str.

Built on python_values.py; a bool is an int whose one digit is 0 or 1.
"""

from __future__ import annotations

from stucktrace.collectors import memory
from stucktrace.collectors.python_values import Values
from stucktrace.facts.settings import Value

LONGEST = 1024


def read(values: Values, pid: int, address: int) -> tuple[bool, Value]:
    """(it is a plain value and was read, the value)."""
    kind = values.type(address)
    if kind == "NoneType":
        return True, None
    if kind == "bool":
        # Up to 3.11 the number of digits is the value; from 3.12 on a tag stands there, so the digit itself is read.
        (word,) = memory.read_words(pid, [address + 24])
        return word is not None, bool((word or 0) & 0xFFFFFFFF)
    found: Value = None
    if kind == "int":
        found = values.integer(address)
    elif kind == "float":
        found = values.number(address)
    elif kind == "str":
        found = values.text(address, LONGEST)
    return found is not None, found
