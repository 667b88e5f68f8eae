"""Detect objects in images with MMDetection."""
