"""Load tests of a running service over HTTP; docs/loadtest.md explains them."""
