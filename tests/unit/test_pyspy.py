"""py-spy's answers: what is taken, what is refused, what is explained, what is hidden."""

import json

import pytest
from stucktrace.collectors import pyspy
from stucktrace.collectors.python import redact
from stucktrace.errors import CollectorError

FRAME = {"name": "get", "filename": "/app/q.py", "module": None, "line": 7, "locals": None}
THREAD = {"thread_id": 140549977794240, "thread_name": "w", "os_thread_id": 9792, "owns_gil": False, "frames": [FRAME]}


def test_a_dump_is_taken_as_it_is():
    assert pyspy.parse(json.dumps([THREAD]).encode()) == (THREAD,)


@pytest.mark.parametrize(
    "frame",
    [
        {**FRAME, "name": ""},
        {**FRAME, "name": "a\0b"},
        {**FRAME, "filename": "\0"},
        {**FRAME, "line": 1 << 30},
        {**FRAME, "line": -70},
        {**FRAME, "line": "7"},
        {"name": "x"},
        None,
    ],
)
def test_frames_that_changed_while_they_were_read_are_refused(frame):
    with pytest.raises(CollectorError) as refused:
        pyspy.parse(json.dumps([{**THREAD, "frames": [FRAME, frame]}]).encode())
    assert refused.value.missing.remedy


@pytest.mark.parametrize("output", [b"", b"nonsense", b"{}", b"[]", b"[1]", b'[{"frames": 3}]', b"\xff\xfe"])
def test_what_is_no_list_of_threads_is_refused(output):
    with pytest.raises(CollectorError):
        pyspy.parse(output)


@pytest.mark.parametrize(
    ("errors", "word", "remedy"),
    [
        ("Error: Failed to find python version from target process\n\nStack backtrace:\n 0: x", "interpreter", "pip"),
        ("Error: Permission Denied: Try running again with elevated permissions", "may not read", ""),
        ("Error: No such file. Check that the process is running.", "ended", ""),
        ("Error: Failed to copy PyInterpreterState\n", "Failed to copy", "again"),
        ("", "status 101", "again"),
    ],
)
def test_a_complaint_becomes_one_line_with_a_remedy(errors, word, remedy):
    missing = pyspy.explain(errors, 101).missing
    assert word in missing.because and remedy in missing.remedy
    assert "\n" not in missing.because and "backtrace" not in missing.because


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("password", '"hunter2"', "(hidden)"),
        ("db_pwd", '"hunter2"', "(hidden)"),
        ("SECRET_KEY", '"x"', "(hidden)"),
        ("access_token", '"x"', "(hidden)"),
        ("dsn", '"https://1:2@sentry.invalid/3"', "(hidden)"),
        ("environ", '{"A": "b"}', "(hidden)"),
        ("api_key", '"x"', "(hidden)"),
        ("broker_url", '"amqp://u:p@h"', "(hidden)"),
        ("url", '"amqp://guest:s3cret@broker:5672//"', '"amqp://(hidden)@broker:5672//"'),
        ("u", '"redis://:s3cret/a@b@cache"', '"redis://(hidden)@cache"'),
        ("u", '"redis://ann:s3cretly..."', '"redis://ann:(hidden)'),
        ("u", '"http://localhost:8000/x"', '"http://localhost:8000/x"'),
        ("x", '{"a": 1, "token": "abc", "b": 2}', '{"a": 1, "token": (hidden), "b": 2}'),
        ("headers", "{'Authorization': 'Bearer abc.def'}", "{'Authorization': (hidden)}"),
        ("line", '"Authorization: Bearer abc.def"', None),
        ("q", '"host=db password=hunter2 user=me"', '"host=db password=(hidden) user=me"'),
        ("n", "42", "42"),
        ("compass", '"north"', '"north"'),
        ("monkey", '"b"', '"b"'),
    ],
)
def test_locals_keep_their_secrets(name, value, shown):
    answer = redact(name, value)
    if shown is not None:
        assert answer == shown
    for secret in ("hunter2", "s3cret", "abc"):
        assert secret not in answer


def test_a_local_is_bounded():
    assert len(redact("body", "x" * 10_000_000)) == 200


def test_a_truncated_secret_stays_hidden():
    assert "z" * 20 not in redact("x", '{"token": "' + "z" * 5000)
