"""A real hang, explained: gunicorn serves an application that counts its visits in Redis; then the network between them
goes away without a word. Everything runs in two network namespaces that are removed at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.harness import brokers, kernel, namespaces, targets  # noqa: E402

STUCKTRACE = Path(sys.executable).with_name("stucktrace")
SILENCE_S = 8.0
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=600).read().decode(), end='')"


def say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def fetch(pair: namespaces.Pair) -> list[str]:
    return ["ip", "netns", "exec", pair.here, sys.executable, "-c", FETCH, "http://127.0.0.1:8000/"]


def explain(pid: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([STUCKTRACE, "pid", str(pid)], check=False)


def main() -> int:
    with namespaces.pair() as pair, brokers.redis(pair) as redis:
        gunicorn = [
            sys.executable,
            "-m",
            "gunicorn",
            "-b",
            "127.0.0.1:8000",
            "--timeout",
            "120",
            "--chdir",
            str(targets.TARGETS),
            "demo_app:application",
        ]
        with targets.start(gunicorn, netns=pair.here, env={"REDIS_HOST": redis.address}, ready=False) as master:
            (worker,) = kernel.wait_for_children(master.pid, 1)
            kernel.wait_for_call(worker, "pselect6", "select")
            say(f"gunicorn serves, worker {worker}; Redis answers at {redis.address}:{redis.port}")
            subprocess.run(fetch(pair), check=True)

            say("the healthy worker:  stucktrace pid " + str(worker))
            healthy = explain(worker)

            say(f"now every packet to and from port {redis.port} is dropped, and a client asks for the page again")
            redis.cut()
            client = subprocess.Popen(fetch(pair), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                print(f"(waiting until the kernel has seen no answer for {SILENCE_S:.0f} s)", flush=True)
                kernel.wait_for_unacked(f"{redis.address}:{redis.port}", SILENCE_S, pair.here)
                say(f"the hanging worker:  stucktrace pid {worker}")
                hanging = explain(worker)
                found = subprocess.run([STUCKTRACE, "pid", str(worker), "--json"], capture_output=True, text=True)
                code = json.loads(found.stdout)["verdict"]["code"]
            finally:
                client.kill()
                client.wait()
    say("everything that was started is gone again")
    if healthy.returncode == 0 and hanging.returncode == 1 and code == "half-open":
        return 0
    print(f"demo: expected a healthy worker, then half-open; got {healthy.returncode}, then {code}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
