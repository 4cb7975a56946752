"""Figures: guidance maps (Fig. 3), segmentations side by side (Fig. 2), training curves, codebooks, confidence.

`ocl-msf figures` draws them from what runs and evaluations have saved.
"""

from ocl_msf.results.figures.confidence import InstrumentSheet, draw_confidence, read_matches
from ocl_msf.results.figures.curves import draw_codebooks, draw_curves, draw_ranking
from ocl_msf.results.figures.guidance_maps import GuidanceSheet, draw_maps, guidance_maps, read_guidance
from ocl_msf.results.figures.segmentations import SceneScores, draw_segmentations, read_scenes

__all__ = [
    "GuidanceSheet",
    "InstrumentSheet",
    "SceneScores",
    "draw_codebooks",
    "draw_confidence",
    "draw_curves",
    "draw_maps",
    "draw_ranking",
    "draw_segmentations",
    "guidance_maps",
    "read_guidance",
    "read_matches",
    "read_scenes",
]
