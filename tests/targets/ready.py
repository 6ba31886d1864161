"""Says "ready" on the pipe that the test gave, once."""

import os


def say_ready(words: str = "ready") -> None:
    fd = os.environ.pop("READY_FD", None)
    if fd is not None:
        os.write(int(fd), (words + "\n").encode())
        os.close(int(fd))
