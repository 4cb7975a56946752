"""Functions that build a group of parts from its config: the `_target_` of `models` and of `losses`."""

import functools
import re
from typing import Any, Dict, Mapping, Sequence, Set

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
        decoder: Any = built.get("decoder" if scale == first else f"decoder_{scale}")
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


def guided_community_models(
    guidance_scales: Sequence[int],
    encoder_without_dvae: Any,
    positions_without_dvae: Any,
    slot_masks: Any,
    normalized_image: Any,
    **models: Any,
) -> Dict[str, Any]:
    """Build the models of a community experiment with `guided_models` in place of its `object_decoder`.

    The encoder stays, but that of a discrete VAE (SLATE), for which `encoder_without_dvae` comes. Models that only the
    decoder took its target from go as well. Frames of videos are folded into the batch for the new decoder.

    Args:
        guidance_scales: as for `guided_models`.
        encoder_without_dvae: config of what replaces `feature_extractor` where there is a `decoder_dvae`.
        positions_without_dvae: config of the positional embedding of its features.
        slot_masks: config of what replaces `object_decoder`: `masks` of patches, and `masks_as_image`. Where the
            decoder gave masks of pixels, `masks` are these, too.
        normalized_image: config of the module that gives the guidance its images, where these have to be normalized.
        models: the configs, not instantiated yet.

    Raises:
        ValueError: the experiment has no `object_decoder`.
    """
    configs = drop_nulls(**models)
    if "object_decoder" not in configs:
        raise ValueError("+msf=guidance replaces the model `object_decoder`, and this experiment has none.")
    replaced = configs["object_decoder"]
    if "SlotAttention" in replaced["_target_"]:  # decodes pixels
        slot_masks = {**slot_masks, "masks": slot_masks["masks_as_image"]}
    configs["object_decoder"] = slot_masks
    if configs.pop("decoder_dvae", None) is not None:
        configs["feature_extractor"] = encoder_without_dvae
        grouping = {**configs["perceptual_grouping"], "positional_embedding": positions_without_dvae}
        configs["perceptual_grouping"] = grouping
    target = str(replaced.get("target_path")).split(".")[0]
    if target in configs and target not in _read_models(configs):
        del configs[target]
    guided = {name: configs.pop(name) for name in ("guidance", "decoder")}
    if configs["perceptual_grouping"]["_target_"].endswith(".Recurrent"):
        video = configs["feature_extractor"]["video_path"]
        folded = dict(frames=video, frame_slots="perceptual_grouping", frame_masks="object_decoder.masks_as_image")
        for name, path in folded.items():
            configs[name] = {"_target_": "routed.ocl_msf.video.FoldFrames", "video_path": path}
    if any(normalized_image["mean"]) or set(normalized_image["std"]) != {1.0}:
        configs["normalized_image"] = normalized_image
        guided["guidance"] = {**guided["guidance"], "image_path": "normalized_image"}
    return guided_models(guidance_scales, **configs, **guided)


def guided_community_losses(guidance_scales: Sequence[int], **losses: Any) -> Dict[str, Any]:
    """Build the losses of a community experiment with those of `guided_losses` in place of its decoder's."""
    return guided_losses(guidance_scales, **_without_decoder(losses))


def targeted_models(
    guidance_scales: Sequence[int], targets: Any, normalized_image: Any, **models: Any
) -> Dict[str, Any]:
    """Build the models of a community experiment whose `object_decoder` reconstructs the tokens of the guidance.

    Args:
        guidance_scales: as for `guided_models`.
        targets: config of the module whose output takes the place of the decoder's target; with a `beside_path` the
            old target is a part of it.
        normalized_image: config of the module that gives the guidance its images.
        models: the configs, not instantiated yet, with the `guidance`.
    """
    configs = drop_nulls(**models)
    decoder = configs.pop("object_decoder")
    dim = configs["guidance"]["vae"]["encoder"]["dim"]
    targets = drop_nulls(**targets)
    if "beside_path" in targets:
        dim += decoder["output_dim"]
    elif (old := str(decoder["target_path"]).split(".")[0]) in configs and old not in _read_models(configs):
        del configs[old]
    guidance = configs.pop("guidance")
    after = {
        name: configs.pop(name) for name in list(configs) if "object_decoder" in _read_models({name: configs[name]})
    }
    configs.update(normalized_image=normalized_image, guidance=guidance, targets=targets)
    configs["object_decoder"] = {**decoder, "output_dim": dim, "target_path": "targets"}
    return guided_models(guidance_scales, **configs, **after)


def community_vae(vqvae: Any, normalized_image: Any, **models: Any) -> Dict[str, Any]:
    """Build stage 1 on the data of a community experiment, of whose own models none is left.

    Args:
        vqvae: config of the VAE.
        normalized_image: config of the module that gives it its images; it takes those of videos from `frames`.
        models: configs of the community's, which say where the videos are.
    """
    configs = {"normalized_image": normalized_image, "vqvae": vqvae}
    if normalized_image["tensor_path"] == "frames":
        video = models["feature_extractor"]["video_path"]
        configs = {"frames": {"_target_": "routed.ocl_msf.video.FoldFrames", "video_path": video}, **configs}
    return {name: instantiate(config, _convert_="all") for name, config in configs.items()}


def without_others(models: Sequence[str], **parts: Any) -> Dict[str, Any]:
    """Build the parts, such as losses, all of whose paths lead to some models."""
    configs = drop_nulls(**parts)
    kept = {name: part for name, part in configs.items() if _read_models(part) <= set(models)}
    return {name: instantiate(part, _convert_="all") for name, part in kept.items()}


def without_decoder(**parts: Any) -> Dict[str, Any]:
    """Build the parts, such as pictures, that take nothing from a community's decoder but masks."""
    return {name: instantiate(part, _convert_="all") for name, part in _without_decoder(parts).items()}


def _without_decoder(parts: Mapping[str, Any]) -> Dict[str, Any]:
    kept = ("object_decoder.masks", "object_decoder.masks_as_image")

    def is_gone(path: Any) -> bool:
        return str(path).split(".")[0] in ("object_decoder", "decoder_dvae") and path not in kept

    return {name: part for name, part in drop_nulls(**parts).items() if not any(map(is_gone, _paths(part).values()))}


def _paths(config: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: path for key, path in config.items() if key.endswith("_path")}


def _read_models(config: Mapping[str, Any]) -> Set[str]:
    """Names of the models that the paths in a config, at any depth, begin with."""
    inner = [_read_models(part) for part in config.values() if isinstance(part, Mapping)]
    return {str(path).split(".")[0] for path in _paths(config).values()}.union(*inner)


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
