"""Labels added, updated and removed while a bundle serves, without training: docs/catalogue.md."""
