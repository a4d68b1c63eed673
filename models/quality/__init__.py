"""Rankings and what they are worth: P@k, PSP@k, nDCG@k, recall."""
