"""stucktrace: why a worker hangs."""

__version__ = "0.1.0"
