"""Finds the fastest index of a run that meets a goal: `python -m models tune`."""
