"""Figures: guidance maps (Fig. 3), segmentations side by side (Fig. 2), training curves, the use of codebooks.

`ocl-msf figures` draws them from what runs and evaluations have saved.
"""

from ocl_msf.results.figures.curves import draw_codebooks, draw_curves, draw_ranking
from ocl_msf.results.figures.guidance_maps import GuidanceSheet, draw_maps, guidance_maps, read_guidance
from ocl_msf.results.figures.segmentations import SceneScores, draw_segmentations, read_scenes

__all__ = [
    "GuidanceSheet",
    "SceneScores",
    "draw_codebooks",
    "draw_curves",
    "draw_maps",
    "draw_ranking",
    "draw_segmentations",
    "guidance_maps",
    "read_guidance",
    "read_scenes",
]
