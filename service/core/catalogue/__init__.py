"""Changes a bundle's labels while it serves, without training: docs/catalogue.md."""
