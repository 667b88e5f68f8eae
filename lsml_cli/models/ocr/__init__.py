"""Detect and recognize text in images with MMOCR."""
