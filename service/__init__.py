"""The service: bundles in, answers over HTTP out."""
