"""Healthy processes that look like hangs, side by side under the agent for ten minutes: how many alerts there are."""

from __future__ import annotations

import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench import Row
from tests.live.test_lookalikes import CASES, Crowd, under_the_agent

WATCHED_S = 600.0


def run() -> list[Row]:
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(4) as starters,
    ):
        crowd = Crowd(stack, Path(folder))
        list(starters.map(crowd.start, CASES))
        with under_the_agent(crowd):
            time.sleep(WATCHED_S)
        processes = len(crowd.families())
    for name, said in crowd.wrong.items():
        print(name, *said, sep="\n  ")
    return [
        Row("healthy look-alikes under the agent for 10 minutes: processes", processes, "", "", ""),
        Row("healthy look-alikes under the agent for 10 minutes: in an alert", len(crowd.wrong), "", "", "target: 0"),
    ]
