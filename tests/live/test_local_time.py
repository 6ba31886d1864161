"""How long ago a local time of a live process was, in zones with and without daylight saving."""

import time
from datetime import UTC, datetime

import pytest
from stucktrace.collectors import local_time, regions

from tests.harness import pythons

TARGET = """
import datetime, time
print("ready", datetime.datetime.now().isoformat(), time.time(), flush=True)
time.sleep(600)
"""
ZONES = ["UTC", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe", "Europe/Dublin", "EST5EDT,M3.2.0,M11.1.0"]


@pytest.mark.parametrize("python", pythons.interpreters()[:2])
@pytest.mark.parametrize("zone", ZONES)
def test_the_age_of_a_local_time(python, zone):
    with pythons.run(TARGET, python=python, before=["env", f"TZ={zone}"]) as child:
        said, began = datetime.fromisoformat(child.words[0]), float(child.words[1])
        ages = local_time.ages_s(child.pid, regions.read(child.pid), said)
        age_s = time.time() - began
        if zone == ZONES[-1]:
            # A rule in place of a name: no file to read.
            assert ages == []
        else:
            assert any(abs(age - age_s) < 5 for age in ages), (ages, age_s)
            assert len(ages) == 1


def test_the_hour_that_comes_twice():
    with pythons.run(TARGET, before=["env", "TZ=America/New_York"]) as child:
        twice = datetime(2025, 11, 2, 1, 30)
        ages = local_time.ages_s(child.pid, regions.read(child.pid), twice)
        first = datetime(2025, 11, 2, 5, 30, tzinfo=UTC).timestamp()
        assert sorted(round(time.time() - age) for age in ages) == [first, first + 3600]
