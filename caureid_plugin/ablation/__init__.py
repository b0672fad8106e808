"""Trainings of several configs with several seeds, and their table."""
