"""Native frames among Python frames, libraries by their file names, and when the psycopg2 hang is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stucktrace.collectors import native_merge
from stucktrace.diagnosis import diagnose, libraries, native
from stucktrace.diagnosis.model import Budgets, Finding
from stucktrace.facts import Frame, LockOwner, NativeStack

from tests.unit.snapshots import lock, process, snapshot, thread

PYTHON = "/usr/bin/python3.11"


def c(function: str, file: str = "/lib/x.so") -> Frame:
    return Frame(function, file, 0, native=True)


EVAL = c("_PyEval_EvalFrameDefault", PYTHON)
STACK = [
    c("poll", "/lib/libc.so.6"),
    c("PQexec"),
    c("cfunction_call", PYTHON),
    EVAL,
    c("_PyEval_Vector", PYTHON),
    c("qsort", "/lib/libc.so.6"),
    c("list_sort", PYTHON),
    c("python3.11+0x1234", PYTHON),
    EVAL,
    c("PyEval_EvalCode", PYTHON),
    c("uwsgi_request", "/usr/bin/uwsgi"),
    c("__libc_start_main", "/lib/libc.so.6"),
    c("_start", PYTHON),
]


def merged(python_frames: int, calls: tuple[int, ...] | None, stack: list[Frame] = STACK) -> list[tuple[str, int]]:
    found = native_merge.merged(1, stack, "", python_frames=python_frames, calls=calls, interpreter=PYTHON)
    return [(frame.function, inside) for frame, inside in zip(found.frames, found.inside, strict=True)]


def test_frames_lie_between_the_calls_that_run_python_frames():
    assert merged(3, (2, 1)) == [("poll", 0), ("PQexec", 0), ("qsort", 2), ("list_sort", 2), ("uwsgi_request", 3)]


@pytest.mark.parametrize(("frames", "calls"), [(3, None), (3, (3,)), (4, (2, 1)), (3, (1, 1, 1))])
def test_only_the_innermost_where_the_counts_do_not_agree(frames: int, calls: tuple[int, ...] | None):
    assert merged(frames, calls) == [("poll", 0), ("PQexec", 0)]


def test_an_unknown_function_of_the_interpreter_may_be_an_evaluation():
    stack = [c("poll"), c("python3.11+0x99", PYTHON), c("hidden_below"), EVAL]
    assert merged(2, None, stack) == [("poll", 0)]


def test_a_thread_without_python_frames():
    stack = [c("pthread_cond_wait", "/lib/libc.so.6"), c("blas_thread_server"), c("start_thread", "/lib/libc.so.6")]
    assert merged(0, None, stack) == [("pthread_cond_wait", 0), ("blas_thread_server", 0)]


@pytest.mark.parametrize(
    ("path", "words", "stem"),
    [
        ("/usr/lib/x86_64-linux-gnu/libpq.so.5.15", "libpq, PostgreSQL's client", "libpq"),
        ("/v/psycopg2_binary.libs/libpq-e8a033dd.so.5.16", "libpq, PostgreSQL's client", "libpq"),
        ("/v/psycopg2_binary.libs/libssl-81ffa89e.so.1.1", "libssl, OpenSSL", "libssl"),
        ("/usr/lib/libcrypto.so.3 (deleted)", "libcrypto, OpenSSL", "libcrypto"),
        ("/v/numpy.libs/libscipy_openblas64_-99b71e71.so", "OpenBLAS", "libscipy_openblas64_"),
        ("/usr/lib/libopenblasp-r0.3.21.so", "OpenBLAS", "libopenblasp-r0.3.21"),
        ("/v/grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so", "gRPC", "cygrpc"),
        ("/v/psycopg2/_psycopg.cpython-313-x86_64-linux-gnu.so", "psycopg2", "_psycopg"),
        ("/v/psycopg_binary/pq.cpython-311-x86_64-linux-gnu.so", "psycopg's libpq wrapper", "pq"),
        ("/lib/x86_64-linux-gnu/libc-2.31.so", "glibc", "libc"),
        ("/lib/x86_64-linux-gnu/libpthread-2.31.so", "glibc", "libpthread"),
        ("/usr/lib/x86_64-linux-musl/libc.so", "musl", "libc"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "glibc", "libc"),
        ("/lib/ld-musl-x86_64.so.1", "musl", "ld-musl-x86_64"),
        ("/usr/lib/libcurl-gnutls.so.4.8.0", "libcurl", "libcurl-gnutls"),
        ("/opt/libpqueue.so.1", "", "libpqueue"),
    ],
)
def test_libraries(path: str, words: str, stem: str):
    assert libraries.words(path) == words
    assert libraries.stem(path) == stem


@pytest.mark.parametrize(
    ("version", "locks"),
    [("1.0.0", False), ("1.0.2", False), ("10", False), ("0.9.8", False), ("1.1", True), ("3", True)],
)
def test_openssl_versions(version: str, locks: bool):
    assert libraries.openssl([f"/usr/lib/libssl.so.{version}"]) == (version,)
    assert libraries.locks_itself(version) is locks


@pytest.mark.parametrize(("name", "release"), [("libpq.so.5.7", "9.4"), ("libpq.so.5.15", "15"), ("libpq.so.5", "")])
def test_postgresql_releases(name: str, release: str):
    assert libraries.postgresql([name]) == release


LIBPQ, CRYPTO = "/usr/lib/libpq.so.5", "/usr/lib/libcrypto.so.1.0.0"
NAMED = (
    c("__lll_lock_wait", "/lib/libc.so.6"),
    c("pthread_mutex_lock", "/lib/libc.so.6"),
    c("pq_lockingcallback", LIBPQ),
)
ABOVE = (c("X509_verify_cert", CRYPTO), c("SSL_connect", "/usr/lib/libssl.so.1.0.0"))


def verdict(stack: tuple[Frame, ...], kind: str = "pthread-mutex", mapping: str = "[heap]", **more: object) -> Finding:
    """The verdict on a mutex that the only thread locked twice, with this native stack."""
    held = replace(lock(kind=kind), owner=LockOwner("self", 100), mapping=mapping)
    seen = replace(
        snapshot(thread(100), stacks={100: ["connect /app/a.py:3"]}, locks=(held,), process=process(**more)),
        native=(NativeStack(100, stack, (0,) * len(stack)),),
    )
    return native.explain(seen, diagnose(seen, Budgets())).verdict


def test_the_story_of_a_callback_of_libpq():
    found = verdict((*NAMED, *ABOVE), packages={"psycopg2": "2.5.4"})
    assert found.code == "deadlock"
    assert found.story.startswith("This is the psycopg2 hang")
    assert [issue.link for issue in found.known_issues] == ["psycopg/psycopg2#290"]
    assert "pq_lockingcallback" in found.evidence[-1].text


def test_versions_that_are_not_known_are_not_claimed():
    found = verdict((*NAMED, *ABOVE))
    assert found.story.startswith("This has the shape of")
    assert "is not known here" in found.story


@pytest.mark.parametrize(
    "more",
    [
        {"packages": {"psycopg2": "2.9.9"}},
        {"packages": {"psycopg2-binary": "2.6.1"}},
        {"packages": {"psycopg2": "2.5.4"}, "libraries": ("libssl.so.3", "libcrypto.so.3")},
        {"packages": {"psycopg2": "2.5.4"}, "libraries": ("libpq.so.5.15",)},
    ],
)
def test_versions_outside_the_bounds(more: dict[str, object]):
    found = verdict((*NAMED, *ABOVE), **more)
    assert "same shape" in found.story
    assert "rule that fault out" in found.story
    assert found.known_issues == ()


LOCK = c("pthread_mutex_lock", "/lib/libc.so.6")


@pytest.mark.parametrize(
    "stack",
    [
        (LOCK, c("libpq.so.5+0x1f00", LIBPQ), *ABOVE),
        (
            LOCK,
            c("_ssl_thread_locking_function", "/x/_ssl.cpython-36m.so"),
            *ABOVE,
            c("PQconnectPoll", "/x/unknown.so"),
        ),
        (LOCK, *ABOVE, c("PQconnectPoll", LIBPQ)),
    ],
)
def test_other_shapes_of_it(stack: tuple[Frame, ...]):
    assert verdict(stack).story


@pytest.mark.parametrize(
    "stack",
    [
        (LOCK, c("take_turns", "/x/libclient.so"), c("open_session", "/x/libclient.so")),
        (LOCK, c("pgtls_init", LIBPQ), c("PQconnectdb", LIBPQ)),
        (LOCK, c("locking_callback", "/x/libcurl.so.4"), *ABOVE, c("curl_easy_perform", "/x/libcurl.so.4")),
        (LOCK, c("free_block_cb", "/x/pool.so"), c("PQexec", LIBPQ)),
        (LOCK, c("locking_callback", "/x/a.so"), c("pqueue_push", "/x/a.so"), *ABOVE),
        (LOCK, c("CRYPTO_MUTEX_lock", "/usr/lib/libcrypto.so.3"), c("PQexec", LIBPQ)),
        (),
    ],
)
def test_the_same_hang_without_it(stack: tuple[Frame, ...]):
    assert not verdict(stack).story


def test_another_kind_of_lock_has_no_such_story():
    assert not verdict((*NAMED, *ABOVE), kind="rlock").story


def test_a_verdict_stands_where_its_native_stacks_cannot_be_explained():
    torn = NativeStack(100, (c("pthread_mutex_lock", "/lib/libc.so.6"),), ())
    own = lock(100, kind="pthread-mutex", owner=LockOwner("self", 100))
    facts = snapshot(thread(syscall="futex"), locks=[own])
    plain = diagnose(facts, Budgets())
    found = diagnose(replace(facts, native=(torn,)), Budgets())
    assert found.verdict == plain.verdict
    assert "native failed on these facts" in found.findings[-1].summary
