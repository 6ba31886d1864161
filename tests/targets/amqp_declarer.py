"""Declares a queue when it is let go, and waits for the broker's declare-ok."""

import sys

import kombu
from ready import wait_for_go

with kombu.Connection(sys.argv[1]) as connection:
    channel = connection.channel()
    wait_for_go()
    kombu.Queue("declared", auto_delete=True)(channel).declare()
