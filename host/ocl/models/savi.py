"""SAVi as one module."""

from functools import partial
from typing import Any

import torch
from torch import nn

from ocl.utils.trees import get_tree_element, reduce_tree


class SAVi(nn.Module):
    """Slot attention for videos (Kipf et al., 2022): the slots of a frame begin with a prediction from the last one.

    Args:
        conditioning: gives the slots before the first frame, from `batch_size`.
        feature_extractor: maps a video to an output that can be iterated over frames.
        perceptual_grouping: corrects slots, from `feature` and `conditioning`.
        decoder: decodes slots, from `object_features`.
        transition_model: predicts the slots of the next frame.
        input_path: where the video (b, t, c, h, w) is.
    """

    def __init__(
        self,
        conditioning: nn.Module,
        feature_extractor: nn.Module,
        perceptual_grouping: nn.Module,
        decoder: nn.Module,
        transition_model: nn.Module,
        input_path: str = "input.image",
    ):
        super().__init__()
        self.conditioning, self.feature_extractor = conditioning, feature_extractor
        self.perceptual_grouping, self.decoder = perceptual_grouping, decoder
        self.transition_model, self.input_path = transition_model, input_path

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add the outputs to the tree.

        They are `feature_extractor`, `initial_conditioning`, and for each frame slots in `perceptual_grouping`
        (b, t, k, d), what was decoded in `decoder`, and predicted slots in `transition_model` (b, t, k, d).
        """
        video = get_tree_element(inputs, self.input_path.split("."))
        features = self.feature_extractor(video=video)
        slots = self.conditioning(batch_size=len(video))
        inputs.update(feature_extractor=features, initial_conditioning=slots)
        steps = []
        for frame in features:
            corrected = self.perceptual_grouping(feature=frame, conditioning=slots).objects
            slots = self.transition_model(corrected)
            decoded = self.decoder(object_features=corrected)
            steps.append({"perceptual_grouping": corrected, "decoder": decoded, "transition_model": slots})
        inputs.update(reduce_tree(steps, partial(torch.stack, dim=1)))
        return inputs
