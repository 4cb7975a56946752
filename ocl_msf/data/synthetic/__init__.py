"""Scenes and videos made here, in the layouts of ClevrTex and MOVi."""
