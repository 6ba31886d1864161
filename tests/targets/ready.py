"""Says "ready" on the pipe that the test gave, once."""

import os
import signal


def say_ready(words: str = "ready") -> None:
    fd = os.environ.pop("READY_FD", None)
    if fd is not None:
        os.write(int(fd), (words + "\n").encode())
        os.close(int(fd))


def wait_for_go(words: str = "ready") -> None:
    """Says ready, then goes on when the test sends SIGUSR1 (`Target.go`)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    say_ready(words)
    signal.sigwait([signal.SIGUSR1])
