"""How long a server wants to be left alone: HTTP's Retry-After header, in seconds or as a date (RFC 9110, 10.2.3)."""

from __future__ import annotations

import time
from contextlib import suppress
from email.utils import parsedate_to_datetime

LONGEST_S = 86_400.0
"""What is beyond is a mistake, and more than a wait can take."""


def seconds(value: str | None) -> float | None:
    """At most LONGEST_S. None: it does not say, or nothing that can be understood."""
    if not value:
        return None
    with suppress(ValueError):
        return min(LONGEST_S, max(0.0, float(value)))
    with suppress(TypeError, ValueError, OverflowError):
        return min(LONGEST_S, max(0.0, parsedate_to_datetime(value).timestamp() - time.time()))
    return None
