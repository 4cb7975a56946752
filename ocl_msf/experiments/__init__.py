"""Experiments: runs and their files, the tables of the paper, and the commands that make them."""
