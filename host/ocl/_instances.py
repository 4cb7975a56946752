"""Preprocessing of instances in videos, of several crops of an image, and of text."""

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tf

from ocl._loader.pipe import get_field
from ocl.errors import require
from ocl.metrics.utils import masks_to_bboxes
from ocl.utils.bboxes import box_xyxy_to_cxcywh

Sample = dict[str, Any]


class CompressMask:
    """Store up to 64 masks as the bits of one integer per pixel."""

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Map masks (t, k, h, w) to the smallest fitting unsigned integers (t, h, w); bit i belongs to mask i.

        Raises:
            ValueError: if there are more than 64 masks.
        """
        present = np.flatnonzero((mask != 0).any(axis=(0, 2, 3)))
        count = int(present[-1]) + 1 if len(present) else 1
        dtype = next(
            (kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if count <= np.iinfo(kind).bits), None
        )
        if dtype is None:
            raise ValueError(f"The bits of an integer hold 64 masks at most, not {count}.")
        bits = (mask[:, :count] != 0).astype(dtype) << np.arange(count, dtype=dtype).reshape(-1, 1, 1)
        return np.bitwise_or.reduce(bits, axis=1)


class CompressedMaskToTensor:
    """Undo `CompressMask`."""

    def __call__(self, compressed_mask: np.ndarray) -> Tensor:
        """Map integers (t, h, w) or (h, w) to float32 masks (t, k, h, w) or (k, h, w), up to the last one in use."""
        count = max(int(compressed_mask.max(initial=0)).bit_length(), 1)
        shifts = np.arange(count, dtype=compressed_mask.dtype).reshape(-1, 1, 1)
        bits = (np.expand_dims(compressed_mask, -3) >> shifts) & np.ones((), compressed_mask.dtype)
        return torch.from_numpy(bits.astype(np.float32))


class AddBBoxFromInstanceMasks:
    """Add box, class and id of the instances of a video, whose first mask is the background.

    Args:
        instance_mask_key: field of the masks (t, i + 1, h, w, 1); samples without it are not changed.
        video_id_key: not used.
        target_box_key: field to add, centre and size relative to the image (t, i, 4), zeros where there is nothing.
        target_cls_key: field to add, 0, or -1 where there is nothing (t, i), int64.
        target_id_key: field to add, the number of the instance, or -1 where there is nothing (t, i), int64.
    """

    def __init__(
        self,
        instance_mask_key: str = "mask",
        video_id_key: str = "__key__",
        target_box_key: str = "instance_bbox",
        target_cls_key: str = "instance_cls",
        target_id_key: str = "instance_id",
    ):
        self.instance_mask_key, self.video_id_key = instance_mask_key, video_id_key
        self.target_keys = target_box_key, target_cls_key, target_id_key

    @staticmethod
    def convert(instance_mask: np.ndarray, video_id: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, classes and ids of masks (t, i + 1, h, w, 1)."""
        masks = torch.from_numpy(instance_mask[:, 1:, ..., 0] > 0)
        present, (height, width) = masks.flatten(2).any(dim=2), masks.shape[-2:]
        boxes = box_xyxy_to_cxcywh(masks_to_bboxes(masks.flatten(0, 1))).unflatten(0, masks.shape[:2])
        boxes = (boxes / torch.tensor([width, height, width, height])).where(present.unsqueeze(-1), 0)
        return boxes, present.long() - 1, torch.arange(masks.shape[1]).where(present, -1)

    def __call__(self, data: Sample) -> Sample:
        """Return the sample with the new fields."""
        if self.instance_mask_key not in data:
            return data
        return {**data, **dict(zip(self.target_keys, self.convert(data[self.instance_mask_key])))}


class MaskInstances:
    """Replace what is not to be used, such as labels of all but a few samples, by NaN.

    Args:
        fields: float arrays or tensors.
        keys_to_keep: keys of samples, or with `mask_video` `<key>_<frame>` of frames, that stay as they are.
        mask_video: decide for each frame (t, ...) of a video, by `decoded_indices` if there are only some.
    """

    def __init__(self, fields: Iterable[str], keys_to_keep: Iterable[str], mask_video: bool = False):
        self.fields, self.keys_to_keep, self.mask_video = tuple(fields), frozenset(keys_to_keep), mask_video
        self.frames: defaultdict[str, set[int]] = defaultdict(set)
        for key in self.keys_to_keep if mask_video else ():
            video, frame = key.rsplit("_", 1)
            self.frames[video.lstrip("0")].add(int(frame))

    def __call__(self, input_dict: Sample) -> Sample:
        """Return a new sample."""
        key = input_dict["__key__"]
        if not self.mask_video and key in self.keys_to_keep:
            return input_dict
        masked = {field: get_field(input_dict, field) * np.nan for field in self.fields}
        if self.mask_video:
            indices = input_dict.get("decoded_indices")
            video = (key if indices is None else key.rsplit("_", 1)[0]).lstrip("0")
            for field, values in masked.items():
                numbers = range(len(values)) if indices is None else [int(index) for index in indices]
                kept = [place for place, number in enumerate(numbers) if number in self.frames.get(video, ())]
                values[kept] = input_dict[field][kept]
        return {**input_dict, **masked}


class MultiCrop:
    """Add two random crops of an image, one of them within the other, for a teacher and a student.

    Args:
        size: side of the crops.
        input_key: field of the image (h, w, 3).
        teacher_key: field to add with the larger crop (3, size, size); `<teacher_key>_<mask>` has those of masks.
        student_key: field to add with the crop of the crop, and likewise.
        global_scale: range of the area of the larger crop, as a fraction of the image.
        local_scale: range of the area of the smaller crop, as a fraction of the larger.
        ratio: range of the ratio of the sides before a crop is resized.
        mask_keys: fields of integer masks (..., h, w, 1).
    """

    def __init__(
        self,
        size: int = 224,
        input_key: str = "image",
        teacher_key: str = "teacher",
        student_key: str = "student",
        global_scale: tuple[float, float] = (0.8, 1.0),
        local_scale: tuple[float, float] = (0.7, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        mask_keys: Optional[Sequence[str]] = None,
    ):
        self.size, self.input_key, self.mask_keys = [size, size], input_key, tuple(mask_keys or ())
        self.views = (teacher_key, list(global_scale)), (student_key, list(local_scale))
        self.ratio = list(ratio)

    def __call__(self, data: Sample) -> Sample:
        """Return the sample with the crops, and in `params` row, column, height and width of the smaller one."""
        image = tf.to_tensor(get_field(data, self.input_key))
        masks = {key: torch.from_numpy(get_field(data, key)[..., 0].astype(np.uint8)) for key in self.mask_keys}
        added: Sample = {}
        for view, scale in self.views:
            place = RandomResizedCrop.get_params(image, scale, self.ratio)
            image = tf.resized_crop(image, *place, self.size)
            nearest = InterpolationMode.NEAREST_EXACT
            masks = {key: tf.resized_crop(mask[None], *place, self.size, nearest)[0] for key, mask in masks.items()}
            added |= {view: image, **{f"{view}_{key}": mask for key, mask in masks.items()}}
            added["params"] = torch.tensor(place, dtype=torch.float32)
        return {**data, **added}


class RandomSample:
    """Draw one of the elements of a list, or of the first axis of an array."""

    def __call__(self, tokens: Sequence[Any]) -> Any:
        """Return the element."""
        return tokens[random.randrange(len(tokens))]


class IsElementOfList:
    """Tell whether something is in a list, for `ocl.transforms.Filter`."""

    def __init__(self, list: Collection[Any]):
        self.list = frozenset(list)

    def __call__(self, key: Any) -> bool:
        """Return whether `key` is one of them."""
        return key in self.list


class SampleFramesUsingIndices:
    """Take those frames of videos whose numbers are in a further field.

    Args:
        frame_fields: fields (t, ...).
        index_field: field of the numbers.
    """

    def __init__(self, frame_fields: Iterable[str], index_field: str):
        self.frame_fields, self.index_field = tuple(frame_fields), index_field

    def __call__(self, inputs: Mapping[str, Any]) -> Sample:
        """Return a new sample."""
        indices = get_field(inputs, self.index_field)
        return {**inputs, **{field: get_field(inputs, field)[indices] for field in self.frame_fields}}


class TokenizeText:
    """Turn text into the tokens of CLIP; needs open_clip, the extra `clip`.

    Args:
        context_length: number of tokens n.
        truncate: cut longer texts off, instead of raising an error.
    """

    def __init__(self, context_length: int = 77, truncate: bool = False):
        self.context_length, self.truncate = context_length, truncate

    def __call__(self, texts: Union[str, Sequence[str]]) -> Tensor:
        """Map a text to (n,), or b texts to (b, n), int64.

        Raises:
            ValueError: if a text is too long.
        """
        texts = [texts] if (is_single := isinstance(texts, str)) else list(texts)
        tokenizer = require("open_clip.tokenizer", "clip").SimpleTokenizer(context_length=self.context_length)
        lengths = [len(tokenizer.encode(text)) + 2 for text in texts]
        if max(lengths) > self.context_length and not self.truncate:
            raise ValueError(f"A text has {max(lengths)} tokens, more than {self.context_length}: set `truncate`.")
        tokens = tokenizer(texts)
        return tokens[0] if is_single else tokens
