"""The two halves of CLIP (Radford et al., 2021), by open_clip, which has OpenAI's weights under OpenAI's names."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from ocl.errors import require
from ocl.feature_extractors import utils
from ocl.typing import ImageData, TextData


def _create(model_type: str, reset_weights: bool) -> Any:
    """Build a CLIP model by the name that OpenAI or open_clip gives it, `ViT-B/32` or `ViT-B-32`."""
    open_clip, name = require("open_clip", "clip"), model_type.replace("/", "-")
    weights, device = None if reset_weights else "openai", torch.get_default_device()
    return open_clip.create_model(name, weights, device=device, force_quick_gelu=True)


class _ClipModel(nn.Module):
    """What both halves share.

    Args:
        model_type: name of the model, such as `ViT-B/32` or `RN50`.
        freeze_model: train none of its parameters.
        reset_weights: begin with random instead of pretrained weights.
        remove_pooling: return features of all places, instead of one for the whole.

    Raises:
        ImportError: if open_clip is not installed.
    """

    def __init__(
        self, model_type: str, freeze_model: bool = False, reset_weights: bool = False, remove_pooling: bool = False
    ):
        super().__init__()
        self.freeze_model, self.remove_pooling = freeze_model, remove_pooling
        self.take(_create(model_type, reset_weights))
        if freeze_model:
            self.requires_grad_(False)

    def take(self, clip: Any) -> None:
        """Keep what this half needs of a whole model."""
        raise NotImplementedError

    def without_gradients(self) -> contextlib.AbstractContextManager:
        """Return a context for the forward pass."""
        return torch.no_grad() if self.freeze_model else contextlib.nullcontext()


class ClipImageModel(_ClipModel, utils.ImageFeatureExtractor):
    """Features of images; see `_ClipModel` for the arguments."""

    def take(self, clip: Any) -> None:
        self.clip_vision_model = clip.visual

    def forward_images(self, images: ImageData) -> utils.ForwardOutput:
        """Map images (b, 3, h, w) to (b, d), or without pooling to (b, n, d) with positions (n, 2)."""
        with self.without_gradients():
            if not self.remove_pooling:
                return self.clip_vision_model(images)
            options = {"indices": 1, "normalize_intermediates": True, "intermediates_only": True}
            maps = self.clip_vision_model.forward_intermediates(images, **options)["image_intermediates"][-1]
            return utils.cnn_compute_positions_and_flatten(maps)


class ClipTextModel(_ClipModel):
    """Features of text; see `_ClipModel` for the other arguments.

    Args:
        remove_eot: without pooling, the features of the end of a text are zero too, like those of padding.
    """

    def __init__(
        self,
        model_type: str,
        freeze_model: bool = False,
        reset_weights: bool = False,
        remove_pooling: bool = False,
        remove_eot: bool = False,
    ):
        super().__init__(model_type, freeze_model, reset_weights, remove_pooling)
        self.remove_eot = remove_eot

    def take(self, clip: Any) -> None:
        self.token_embedding, self.positional_embedding = clip.token_embedding, clip.positional_embedding
        self.transformer, self.ln_final, self.text_projection = clip.transformer, clip.ln_final, clip.text_projection
        self.register_buffer("attn_mask", clip.attn_mask, persistent=False)

    def forward(self, text: TextData) -> Tensor:
        """Map tokens (b, n), in which the end has the highest number, to (b, d), or without pooling to (b, n, d)."""
        with self.without_gradients():
            tokens = self.token_embedding(text) + self.positional_embedding
            tokens = self.ln_final(self.transformer(tokens, attn_mask=self.attn_mask))
            end = text.argmax(dim=-1)
            if not self.remove_pooling:
                return tokens[torch.arange(len(text), device=text.device), end] @ self.text_projection
            places = torch.arange(text.shape[1], device=text.device)
            is_padding = places >= (end if self.remove_eot else end + 1).unsqueeze(-1)
            return tokens.masked_fill(is_padding.unsqueeze(-1), 0) @ self.text_projection
