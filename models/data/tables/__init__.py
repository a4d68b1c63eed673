"""Reads tables that people have (CSV, Parquet, JSON lines and others) as a data set."""
