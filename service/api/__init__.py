"""The routes: what each takes, and what it answers."""
