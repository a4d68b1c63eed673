"""How the service runs: as one process, or as a master that forks and replaces workers."""
