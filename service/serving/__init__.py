"""Which bundles are open, by which name, and how that changes while they serve."""
