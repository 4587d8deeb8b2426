"""What the README shows, run by `make demo` and the tests."""
