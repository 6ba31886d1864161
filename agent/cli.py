"""The commands, thin."""


def main() -> None:
    raise SystemExit(2)
