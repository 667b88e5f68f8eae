"""Fetch what a task's values point to: files, URLs, buckets, and files served by Label Studio."""
