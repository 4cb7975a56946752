"""Hydra configurations of the host, found as `pkg://configs`."""
