"""`stucktrace amqp`: what passes on the AMQP connections of a process."""

from __future__ import annotations

from typing import NoReturn

import click
from stucktrace.commands.common import PROBE_HELP, complete_pid, duration, json_option, leave, parse_pid
from stucktrace.errors import UsageError

STATUS = """\b
Exit status:
  0  frames were read, and nothing waits for the broker in the end
  1  in the end something is stuck: blocked by the broker, a publish without a confirm for over 5 s,
     a channel closed under an open confirm; or --probe found a broker's TCP gone or unreachable
  2  usage error
  3  could not watch: gone, or not permitted; or FILE cannot be read
  4  nothing could be read: no AMQP connection, no frame passed, or TLS
"""


@click.command("amqp", epilog=STATUS)
@click.argument("pid", metavar="[PID]", required=False, shell_complete=complete_pid)
@click.option(
    "--for",
    "for_s",
    callback=duration(0.001, 7 * 86_400),
    metavar="TIME",
    help="Watch so long: 30s, 2m.  [default: until Ctrl-C]",
)
@json_option("JSON lines: events as they come, then a summary of each connection (schema stucktrace.amqp/1).")
@click.option("--pcap", metavar="FILE", help="Write the packets to FILE: no message bodies, properties or credentials.")
@click.option("--probe", is_flag=True, help=PROBE_HELP)
@click.option("--read", "file", metavar="FILE", help="Read a pcap or pcapng file (-: stdin) instead of a process.")
def command(
    *, pid: str | None, for_s: float | None, as_json: bool, pcap: str | None, probe: bool, file: str | None
) -> NoReturn:
    """What passes on the AMQP 0-9-1 connections of process PID, as it passes.

    The packets are captured in the process's own network namespace, with a kernel filter on its own connections; the
    process is not touched. Publishes and their confirms (with the time they take), deliveries, heartbeats, blocked and
    closed: a table on a terminal, else a line for what is out of order, and a summary in the end. Message bodies and
    credentials are never kept.
    """
    from pathlib import Path

    from stucktrace import amqp

    if file is not None:
        if pid is not None or for_s is not None or pcap is not None or probe:
            raise UsageError(
                "--read goes with neither a PID nor --for, --pcap or --probe", "it reads the file to its end"
            )
        leave(amqp.read_file(file, as_json=as_json))
    if pid is None:
        raise UsageError(
            "no process is named", "give a PID, or --read FILE; `stucktrace pid` lists what could be looked at"
        )
    wanted = parse_pid(pid)
    leave(amqp.watch(wanted, for_s=for_s, as_json=as_json, pcap=None if pcap is None else Path(pcap), probe=probe))
