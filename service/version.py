"""The version of the whole project, read by pyproject.toml and sealed into bundles."""

__version__ = "0.1.0"
