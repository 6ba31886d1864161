"""Which library a mapped file is, from its name: "libpq-e8a033dd.so.5.16" in a wheel and "libpq.so.5.15" are libpq."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

WORDS: Mapping[str, str] = {
    "libc": "glibc",
    "libpthread": "glibc",
    "libresolv": "glibc",
    "libpq": "libpq, PostgreSQL's client",
    "_psycopg": "psycopg2",
    "libssl": "libssl, OpenSSL",
    "libcrypto": "libcrypto, OpenSSL",
    "_ssl": "Python's ssl",
    "_hashlib": "Python's hashlib",
    "libcurl": "libcurl",
    "pycurl": "pycurl",
    "libgrpc": "gRPC",
    "libgrpc++": "gRPC",
    "cygrpc": "gRPC",
    "libopenblas": "OpenBLAS",
    "libopenblasp": "OpenBLAS",
    "libopenblas64_": "OpenBLAS",
    "libopenblas64_p": "OpenBLAS",
    "libscipy_openblas": "OpenBLAS",
    "libscipy_openblas64_": "OpenBLAS",
    "libgomp": "OpenMP",
    "librdkafka": "librdkafka, Kafka's client",
    "libmysqlclient": "MySQL's client",
    "libmariadb": "MariaDB's client",
    "_mysql": "mysqlclient",
    "libmemcached": "libmemcached",
    "libhiredis": "hiredis",
    "libuv": "libuv",
    "libzmq": "ZeroMQ",
    "libstdc++": "C++ runtime",
}
"""By stem, in the words for the user."""

# auditwheel puts a hash behind the stem, glibc up to 2.33 its version.
_TAIL = re.compile(r"-(?:[0-9a-f]{8}|\d[\d.]*)$")
_OPENSSL = re.compile(r"^lib(?:ssl|crypto)(?:-[0-9a-f]{8})?\.so\.(\d+)(?:\.(\d+))?(?:\.(\d+))?")
_LIBPQ = re.compile(r"^libpq(?:-[0-9a-f]{8})?\.so\.5\.(\d+)")


def stem(path: str) -> str:
    name = path.removesuffix(" (deleted)").rpartition("/")[2]
    return _TAIL.sub("", name.partition(".so")[0].partition(".cpython-")[0].partition(".abi3")[0])


def words(path: str) -> str:
    """What the library is; "" for one that is not known."""
    name = stem(path)
    if name == "pq" and "/psycopg" in path:
        return "psycopg's libpq wrapper"
    if name.startswith("ld-musl") or path.removesuffix(" (deleted)").endswith("/libc.so"):
        return "musl"
    # Builds of one library: libcurl-gnutls, libopenblasp-r0.
    return WORDS.get(name) or WORDS.get(name.partition("-")[0], "")


def short(path: str) -> str:
    """For one line: the known stem ("libpq"), else the file's name."""
    name = path.removesuffix(" (deleted)").rpartition("/")[2]
    known = words(path)
    return (known if known in ("glibc", "musl") else stem(path)) if known else name


def openssl(names: Iterable[str]) -> tuple[str, ...]:
    """The versions that the mapped libssl and libcrypto name: "1.0.2", "1.1", "3"."""
    found = (_OPENSSL.match(name.rpartition("/")[2]) for name in names)
    return tuple(dict.fromkeys(".".join(filter(None, match.groups())) for match in found if match))


def locks_itself(openssl_version: str) -> bool:
    """OpenSSL has locks of its own from 1.1.0 on. Red Hat called its 1.0.x "10"."""
    parts = [int(part) for part in openssl_version.split(".")]
    return parts[0] != 10 and tuple(parts) >= (1, 1)


def postgresql(names: Iterable[str]) -> str:
    """The PostgreSQL release that a mapped libpq is of: libpq.so.5.8 is 9.5's, 5.10 is 10's. "" when not told."""
    for name in names:
        match = _LIBPQ.match(name.rpartition("/")[2])
        if match:
            minor = int(match[1])
            return str(minor) if minor >= 10 else f"9.{minor - 3}"
    return ""
