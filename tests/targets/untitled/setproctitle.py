"""On PYTHONPATH this hides the real package: gunicorn then leaves its command line as it was started."""

raise ImportError("hidden by the test")
