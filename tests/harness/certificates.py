"""A certificate for one address, and the authority that signed it, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    authority: Path
    certificate: Path
    key: Path


def make(folder: Path, address: str) -> Certificates:
    """Files that everybody may read."""
    found = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    extension = folder / "extension"
    extension.write_text(f"subjectAltName = IP:{address}\n")
    key = folder / "ca.key"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    request = folder / "request.pem"
    for command in (
        ["req", "-x509", *new, "-subj", "/CN=test authority", "-keyout", key, "-out", found.authority],
        ["req", *new[:-2], "-subj", f"/CN={address}", "-keyout", found.key, "-out", request],
        ["x509", "-req", "-in", request, "-CA", found.authority, "-CAkey", key, "-CAcreateserial", "-days", "2",
         "-extfile", extension, "-out", found.certificate],
    ):  # fmt: skip
        done = subprocess.run(["openssl", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for path in (found.authority, found.certificate, found.key):
        path.chmod(0o644)
    return found
