"""Refusals before a request is read, and connections that rest: docs/decisions/0024."""
