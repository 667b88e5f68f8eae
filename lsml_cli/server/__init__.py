"""Serve a model over Label Studio's ML-backend protocol and train it in background jobs."""
