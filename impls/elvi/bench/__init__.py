"""Measure techniques against the unmodified model: quality, time and memory, on held-out clips of the tiny world."""
