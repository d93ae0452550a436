"""Measuring quality: tasks with exact scores, run on an opened checkpoint."""
