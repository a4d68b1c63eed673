"""A load test from outside: docs/loadtest.md."""
