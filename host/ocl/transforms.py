"""Transforms of streams of samples, configured by name in the data modules."""
from ocl._pipe import get_field
from ocl._slicing import SampleConsecutive, SampleSlices, SplitConsecutive
from ocl._transform import FieldTransform, Transform
from ocl._video_decoding import DecodeRandomStridedWindow, DecodeRandomWindow, VideoDecoder

__all__ = [
    "DecodeRandomStridedWindow",
    "DecodeRandomWindow",
    "DuplicateFields",
    "Filter",
    "Map",
    "SampleConsecutive",
    "SampleSlices",
    "SimpleTransform",
    "SplitConsecutive",
    "Transform",
    "VideoDecoder",
]


class SimpleTransform(FieldTransform):
    """Apply a function to each named field.

    Args:
        transforms: function by field name.
        batch_transform: whether the functions expect the fields of batches.
    """

    def __init__(self, transforms, batch_transform):
        super().__init__(transforms, batch_transform)
        self.transforms = dict(transforms)

    def __call__(self, input_pipe):
        return input_pipe.map_dict(self.transforms)


class Map(FieldTransform):
    """Apply a function to whole samples.

    Args:
        transform: function from dict to dict.
        fields: names of the fields it needs.
        batch_transform: whether it expects batches.
    """

    def __init__(self, transform, fields, batch_transform):
        super().__init__(fields, batch_transform)
        self.transform = transform

    def __call__(self, input_pipe):
        return input_pipe.map(self.transform)


class Filter(FieldTransform):
    """Keep the samples for which `predicate(*values of the fields)` holds."""

    def __init__(self, predicate, fields):
        super().__init__(fields)
        self.predicate = predicate

    def __call__(self, input_pipe):
        return input_pipe.filter(self._holds)

    def _holds(self, sample):
        return self.predicate(*(get_field(sample, field) for field in self.fields))


class DuplicateFields(FieldTransform):
    """Give fields a second name.

    Args:
        mapping: new name by field; both names refer to the same object.
        batch_transform: whether to do so in batches.
    """

    def __init__(self, mapping, batch_transform):
        super().__init__(mapping, batch_transform)
        self.mapping = dict(mapping)

    def __call__(self, input_pipe):
        return input_pipe.map(self._duplicate)

    def _duplicate(self, sample):
        return {**sample, **{copy: get_field(sample, field) for field, copy in self.mapping.items()}}
