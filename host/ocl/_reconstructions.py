"""What decoders return."""

import dataclasses
from typing import Optional

from torch import Tensor


@dataclasses.dataclass
class SimpleReconstructionOutput:
    """A reconstruction (b, c, h, w)."""

    reconstruction: Tensor


@dataclasses.dataclass
class ReconstructionOutput:
    """An image as a mixture of objects; videos have a further axis t behind b.

    Attributes:
        reconstruction: (b, c, h, w).
        object_reconstructions: (b, k, c, h, w).
        masks: (b, k, h, w), summing to 1 over k.
    """

    reconstruction: Tensor
    object_reconstructions: Tensor
    masks: Tensor


@dataclasses.dataclass
class PatchReconstructionOutput:
    """Reconstructed features of patches; videos have a further axis t behind b.

    Attributes:
        reconstruction: (b, n, d).
        masks: (b, k, n).
        masks_as_image: (b, k, s, s), the masks at the size of the image.
        target: (b, n, d), what is to be reconstructed.
    """

    reconstruction: Tensor
    masks: Tensor
    masks_as_image: Optional[Tensor] = None
    target: Optional[Tensor] = None


@dataclasses.dataclass
class OpticalFlowPredictionTaskOutput:
    """Optical flow as a mixture of objects.

    Attributes:
        predicted_flow: (b, 2, h, w).
        object_flows: (b, k, 2, h, w).
        masks: (b, k, h, w), summing to 1 over k.
    """

    predicted_flow: Tensor
    object_flows: Tensor
    masks: Tensor


@dataclasses.dataclass
class ReconstructionAmodalOutput:
    """An image as a mixture of objects, with whole and visible masks; videos have a further axis t behind b.

    Attributes:
        reconstruction: (b, c, h, w).
        object_reconstructions: (b, k, c, h, w).
        masks: (b, k, h, w), each object on its own, also where others hide it.
        masks_vis: (b, k, h, w), what is visible, summing to 1 over k.
        masks_eval: (b, k, h, w), `masks_vis` stretched to [0, 1] per object; zeros for an object of zeros.
    """

    reconstruction: Tensor
    object_reconstructions: Tensor
    masks: Tensor
    masks_vis: Tensor
    masks_eval: Tensor


@dataclasses.dataclass
class DepthReconstructionOutput(ReconstructionOutput):
    """An image rendered from densities along z points of each ray, front to back.

    Attributes:
        masks_amodal: (b, k, h, w), the most light that any point of the object reflects.
        depth_map: (b, h, w), the point of the nearest object.
        object_depth_map: (b, k, h, w), the point that reflects most light.
        densities: (b, k, z, h, w).
        colors: (b, k, z, c, h, w).
    """

    masks_amodal: Optional[Tensor] = None
    depth_map: Optional[Tensor] = None
    object_depth_map: Optional[Tensor] = None
    densities: Optional[Tensor] = None
    colors: Optional[Tensor] = None


@dataclasses.dataclass
class BBoxOutput:
    """Predicted boxes.

    Attributes:
        bboxes: (b, k, 4).
        classes: (b, k, number of classes).
        ori_res_bboxes: (b, k, 4), at the size of the image.
        inference_obj_idxes: (b, k), number of the object or -1.
    """

    bboxes: Tensor
    classes: Tensor
    ori_res_bboxes: Tensor
    inference_obj_idxes: Tensor
