"""One table with independent implementations: docs/compare.md."""
