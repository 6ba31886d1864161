"""Clients at the very beginning of a protocol, where the server owes an answer at once: handshakes.py PROTOCOL PORT."""

import sys

from ready import say_ready

HOST = "127.0.0.1"


def tls(port):
    import socket
    import ssl

    context = ssl._create_unverified_context()
    context.wrap_socket(socket.create_connection((HOST, port)))


def https(port):
    import urllib.request

    urllib.request.urlopen(f"https://{HOST}:{port}/")


def smtp(port):
    import smtplib

    smtplib.SMTP(HOST, port)


def psycopg2(port):
    import psycopg2

    psycopg2.connect(f"postgresql://postgres@{HOST}:{port}/postgres?gssencmode=disable")


def psycopg3(port):
    import psycopg

    psycopg.connect(f"postgresql://postgres@{HOST}:{port}/postgres?gssencmode=disable&connect_timeout=0")


def kombu(port):
    from kombu import Connection

    Connection(f"amqp://guest@{HOST}:{port}//", connect_timeout=None).connect()


say_ready()
globals()[sys.argv[1]](int(sys.argv[2]))
