"""Compare predictions with annotations: metrics, gates, ranking, reports."""
