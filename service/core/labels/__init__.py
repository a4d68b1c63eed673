"""Labels by row and by id, and answers that filters narrow."""
