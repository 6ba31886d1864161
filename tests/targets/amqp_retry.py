"""Publishes to a broker that is not there, with a policy that tries for ever."""

import sys

import kombu
from ready import say_ready

connection = kombu.Connection(sys.argv[1], connect_timeout=2)
policy = {
    "max_retries": None,
    "interval_start": 0,
    "interval_step": 1,
    "interval_max": 3,
    "errback": lambda *_: say_ready(),
}
connection.ensure_connection(**policy)
