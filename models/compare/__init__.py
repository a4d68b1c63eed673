"""Compares Astrolabe with independent implementations; docs/compare.md explains the comparison."""
