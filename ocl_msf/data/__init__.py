"""Synthetic scenes, converters from raw downloads to shards, and the data module that reads the shards."""
