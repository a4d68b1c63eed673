"""Rankings and their quality: P@k, PSP@k, nDCG@k, recall."""
