"""Open bundles: which one answers a request, and how an operator replaces one without a gap."""
