"""Every setting of the service: docs/configuration.md."""
