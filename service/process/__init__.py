"""One process or a master with workers: start, signals, drain, restarts."""
