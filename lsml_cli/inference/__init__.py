"""Run models over tasks: batching, replicas, bulk prediction, resume and retry."""
