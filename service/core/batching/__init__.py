"""Who is admitted, who waits, and what goes into the next batch."""
