"""Label trees as they are trained."""
