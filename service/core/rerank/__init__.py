"""Second stage: small trees that re-order the first labels of a search."""
