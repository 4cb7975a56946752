"""Synthetic scenes and videos, in the layouts of ClevrTex and MOVi."""
