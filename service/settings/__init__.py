"""The settings of the service: docs/configuration.md."""
