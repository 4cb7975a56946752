"""Callbacks of trainings: loading what is frozen, averaging weights, progress, a record of the environment."""
