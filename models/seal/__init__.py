"""Seals bundles: from a run, or from an earlier bundle and the changes to its catalogue."""
