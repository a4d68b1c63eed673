"""Feedback: what users did with answers, and a sample of the answers, as Parquet files."""
