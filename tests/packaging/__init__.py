"""What is built for others is built, installed into an empty Debian and run there: `make test-packaging`."""
