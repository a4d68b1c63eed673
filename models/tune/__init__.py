"""The search for the cheapest index that meets a goal."""
