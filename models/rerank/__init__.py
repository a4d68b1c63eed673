"""What a re-ranker is made of: knowledge about labels, and trees as a graph."""
