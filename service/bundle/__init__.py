"""The contract between training and serving: docs/bundle.md."""
