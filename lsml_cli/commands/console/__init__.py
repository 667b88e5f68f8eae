"""Print progress, tables and summaries."""
