"""The raw downloads, a module for each."""
