"""Two children publish with confirms over the one connection that their parent opened before the fork."""

import os
import sys

from kombu import Connection
from ready import say_ready

connection = Connection(sys.argv[1], transport_options={"confirm_publish": True, "socket_settings": {18: 0}})
producer = connection.Producer()
producer.publish("first", routing_key="shared")
for _ in range(2):
    if os.fork() == 0:
        while True:
            producer.publish("x" * 200, routing_key="shared")
say_ready()
os.wait()
os.wait()
