"""The entry point. Ctrl-C ends the command without a word from the first moment on, before much else is imported."""

from __future__ import annotations

import signal


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stucktrace.cli import main as run

    run()


if __name__ == "__main__":
    main()
