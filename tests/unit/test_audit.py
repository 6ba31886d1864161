"""What `stucktrace audit` puts together from its collectors."""

from __future__ import annotations

from dataclasses import replace

from stucktrace.audit import _loaded
from stucktrace.facts import SettingFact


def fact(name, value, source="process memory", known=True):
    return SettingFact("celery", name, value, source, in_force=True, known=known)


def test_a_module_of_settings_that_celery_has_not_loaded_yet():
    about = (fact("app_state", "not used yet"), fact("app_settings", "cfg"))
    unread = fact("broker_heartbeat", None, "cfg.broker_heartbeat", known=False)
    assert _loaded((*about, unread)) == (about, "cfg")
    read = replace(unread, value=20, known=True)
    assert _loaded((*about, read)) == ((*about, read), "")
    used = (fact("app_state", "configured"), about[1], unread)
    assert _loaded(used) == (used, "")
