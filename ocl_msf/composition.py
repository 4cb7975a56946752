"""Functions that build a group of parts from its config: the `_target_` of `models` and of `losses`."""

import functools
import re
from typing import Any, Dict, Mapping, Sequence

from hydra.utils import instantiate

from ocl_msf._renamed import refuse_old_names

__getattr__ = refuse_old_names(__name__)


def drop_nulls(**parts: Any) -> Dict[str, Any]:
    """Leave out the parts that are None.

    A config cannot delete a part of another one, but it can set it to null.
    """
    return {name: part for name, part in parts.items() if part is not None}


def guided_models(guidance_scales: Sequence[int], **models: Any) -> Dict[str, Any]:
    """Build the models of stage 2 with a decoder for each guiding scale (Table 5, lower right).

    The config has the `guidance` and the `decoder` of the first scale. For every further scale s, `decoder_<s>` is
    added behind them: by the same config, with weights of its own, and the size and guidance of that scale. Decoders
    that predict code numbers are given the `lookup` of their scale. Parts that are null are left out.

    Args:
        guidance_scales: the scales that guide, 1 the finest.
        models: the configs, not instantiated yet: beside this `_target_` stands `_recursive_: false`. If there is a
            `pyramid`, it goes around the feature extractor, see `pyramid_models`.

    Raises:
        ValueError: guidance_scales does not begin with the scale of the guidance.
    """
    configs = _around_extractor(drop_nulls(**models))
    first = configs["guidance"]["scale"]
    if not guidance_scales or guidance_scales[0] != first:
        raise ValueError(
            f"experiment.guidance_scales must begin with experiment.guidance_scale, {first}, got {guidance_scales}."
        )
    configs["guidance"] = {**configs["guidance"], "min_scales": max(guidance_scales)}
    for scale in guidance_scales[1:]:
        configs[f"decoder_{scale}"] = _at_scale(configs["decoder"], scale)
        if "size" in configs["decoder"]:
            configs[f"decoder_{scale}"]["size"] = configs["decoder"]["size"] * 2**first // 2**scale
    built = {name: instantiate(config, _convert_="all") for name, config in configs.items()}
    for scale in guidance_scales:
        decoder = built["decoder" if scale == first else f"decoder_{scale}"]
        if hasattr(decoder, "lookup"):
            decoder.lookup = functools.partial(built["guidance"].lookup, scale=scale)
    return built


def pyramid_models(**models: Any) -> Dict[str, Any]:
    """Build models whose feature extractor runs over the image pyramid, for `msf/encoder=pyramid`.

    The config `pyramid` becomes the `feature_extractor`, with the one that stood there as its `extractor`, and takes
    over the path of its images. The other models stay as they are; those of stage 2 are built by `guided_models`.

    Args:
        models: the configs, not instantiated yet: beside this `_target_` stands `_recursive_: false`.

    Raises:
        ValueError: there is no feature extractor that takes images or videos.
    """
    if "guidance_scales" in models:
        return guided_models(**models)
    configs = _around_extractor(drop_nulls(**models))
    return {name: instantiate(config, _convert_="all") for name, config in configs.items()}


def _around_extractor(models: Mapping[str, Any]) -> Dict[str, Any]:
    """Put the pyramid, if there is one, around the feature extractor, see `pyramid_models`."""
    configs = dict(models)
    pyramid = configs.pop("pyramid", None)
    if pyramid is None:
        return configs
    extractor = dict(configs.get("feature_extractor", {}))
    paths = [extractor.pop(key) for key in ("image_path", "video_path") if key in extractor]
    if not paths:
        raise ValueError(
            "The pyramid goes around models.feature_extractor, and there must be one with image_path or video_path."
        )
    extractor["_target_"] = re.sub(r"^routed\.", "", extractor["_target_"])
    configs["feature_extractor"] = {**pyramid, "extractor": extractor, "image_path": paths[0]}
    return configs


def guided_losses(guidance_scales: Sequence[int], **losses: Any) -> Dict[str, Any]:
    """Build the losses of stage 2; for every further guiding scale s, `<loss>_<s>` is that of `decoder_<s>`.

    Args:
        guidance_scales: as for `guided_models`.
        losses: the configs, not instantiated yet. Those that take nothing from a decoder are there once.
    """
    first = drop_nulls(**losses)
    configs = dict(first)
    for scale in guidance_scales[1:]:
        others = {f"{name}_{scale}": _at_scale(config, scale) for name, config in first.items()}
        configs.update({name: config for name, config in others.items() if config not in first.values()})
    return {name: instantiate(config, _convert_="all") for name, config in configs.items()}


def _at_scale(config: Mapping[str, Any], scale: int) -> Dict[str, Any]:
    """Copy a config of the first guiding scale, its paths leading to the decoder and guidance of another one."""
    copy = dict(config)
    for key, path in config.items():
        model, _, output = path.partition(".") if key.endswith("_path") and path else ("", "", "")
        if model == "decoder":
            copy[key] = f"decoder_{scale}.{output}"
        elif model == "guidance":
            copy[key] = f"guidance.all_{output}.{scale - 1}"
    return copy
