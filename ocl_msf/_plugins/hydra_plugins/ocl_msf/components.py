"""The table of all parts that a config can take by name, as choices of Hydra's config groups `msf/<group>`.

Settings are those of this project's experiments where there are such, otherwise the defaults written here, so that
every choice fits into anybody's config. `ocl-msf components` prints the table.
"""

from typing import Any, Dict, List, NamedTuple, Tuple


class Component(NamedTuple):
    """One choice: `msf/<group>=<name>` puts `target` with `settings` at `place` of a config, instead of what is there.

    Attributes:
        also: what else it sets in the config.
        choices: choices of other groups that it needs; each can be overridden.
    """

    group: str
    name: str
    place: str
    target: str
    settings: Dict[str, Any] = {}
    also: Dict[str, Any] = {}
    choices: Dict[str, str] = {}


def _shared(key: str, default: Any) -> str:
    """The number of `experiment` that our modules share, or a default."""
    return f"${{oc.select:experiment.{key},{default}}}"


def _part(target: str, **settings: Any) -> Dict[str, Any]:
    return {"_target_": f"ocl_msf.{target}", **settings}


CODES, SIZE = _shared("codebook_sizes", "[64,64]"), _shared("guidance_size", 32)
SCALES, CHANNELS, SLOT = _shared("num_scales", 3), _shared("vae.dim", 256), _shared("slots.dim", 256)
FEATURE = _shared("encoder.dim", 64)

IMAGE = {"image_path": "input.image"}
ENCODER = {"feature_dim": FEATURE, "stride": _shared("encoder.stride", 1), **IMAGE}
QUERIES = {"object_dim": SLOT, "n_slots": _shared("slots.number", 11)}
EMBEDDING = {
    "_target_": "ocl.neural_networks.wrappers.Sequential",
    "_args_": [
        {
            "_target_": "ocl.neural_networks.positional_embedding.SoftPositionEmbed",
            "n_spatial_dims": 2,
            "feature_dim": FEATURE,
        },
        {
            "_target_": "ocl.neural_networks.build_two_layer_mlp",
            "input_dim": FEATURE,
            "output_dim": SLOT,
            "hidden_dim": SLOT,
            "initial_layer_norm": True,
        },
    ],
}
GROUPING = {
    "feature_dim": SLOT,
    "object_dim": SLOT,
    "iters": _shared("slots.iters", 3),
    "positional_embedding": EMBEDDING,
    "feature_path": "feature_extractor",
    "conditioning_path": "conditioning",
}
DECODER = {
    "object_dim": SLOT,
    "guidance_dim": CHANNELS,
    "size": SIZE,
    "slots_path": "perceptual_grouping.objects",
    "guidance_path": "guidance.features",
}
TOKENS = {**DECODER, "codebook_sizes": CODES, "dim": _shared("decoder.dim", 256)}
QUANTIZER = {"dim": CHANNELS, "maps_path": "vqvae.encodings"}
DECODED = {"features_path": "guidance.features"}
VAE_PART = {"dim": CHANNELS, "hidden_dim": _shared("vae.hidden_dim", 64)}
FUSION = _part("fusion.MultiScaleFusion", dim=CHANNELS, codebook_size=64, num_scales=SCALES)
VAE = {
    "encoder": _part("autoencoder.Encoder", **VAE_PART),
    "decoder": _part("autoencoder.Decoder", **VAE_PART),
    "quantizer": FUSION,
    "num_scales": SCALES,
}
MASKS = {"prediction_path": "masks", "target_path": "input.mask", "ignore_path": "input.void"}


def _weighted(name: str, weight: float) -> Dict[str, Any]:
    path = f"feature_extractor.aux_features.{name}"
    return {"_target_": "routed.ocl_msf.losses.WeightedLoss", "weight": weight, "loss_path": path}


ON_GRID = {"feature_dim": FEATURE}
IN_PYRAMID = {**FUSION, "num_scales": "${models.pyramid.num_scales}"}
COMMITMENT = {"pyramid_commitment": _weighted("commitment_loss", 0.25)}
OF_GUIDANCE = {key: f"${{experiment.callbacks.load_guidance.{key}}}" for key in ("wanted", "search_folder", "command")}
LOAD_QUANTIZER = {
    "_target_": "ocl_msf.training.callbacks.LoadGuidance",
    **OF_GUIDANCE,
    "checkpoint": "${experiment.callbacks.load_guidance.checkpoint}",
    "target": "feature_extractor.fusion.quantizer",
    "source": "models.vqvae.quantizer",
}

PREHEATED = {
    "object_dim": SLOT,
    "feature_dim": _shared("encoder.dim", 64),
    "features_path": "feature_extractor.features",
    "detach": {
        "_target_": "ocl.scheduling.StepHPScheduler",
        "start_value": 1.0,
        "end_value": 0.0,
        "switch_step": "${eval_lambda:'lambda steps: steps // 10',${trainer.max_steps}}",
    },
}
COLD = _part("conditioning.GaussianQueries", **QUERIES, shared=True)
COLD_BOXES = _part("conditioning.BoxQueries", **QUERIES)
PREHEATING = {
    "_target_": "routed.ocl_msf.preheating.PreheatingLoss",
    "preheated_path": "conditioning.preheated",
    "slots_path": "perceptual_grouping.objects",
}
OF_FRAMES = {"slots_path": "recurrence.corrector.objects", "is_empty_path": "conditioning.is_empty"}

_MODELS: List[Tuple[str, str, str, str, Dict[str, Any]]] = [
    ("encoder", "naive_cnn", "feature_extractor", "feature_extractors.NaiveCNN", ENCODER),
    (
        *("encoder", "vit_with_cnn", "feature_extractor", "feature_extractors.ViTWithCNN"),
        {**ENCODER, "vit": _shared("encoder.vit", "vit_small_patch8_224.dino"), "pretrained": True},
    ),
    ("pyramid", "images", "image_pyramid", "pyramid.ImagePyramid", {"num_scales": SCALES, **IMAGE}),
    (
        "queries",
        "gaussian",
        "conditioning",
        "conditioning.GaussianQueries",
        {**QUERIES, "batch_size_path": "input.batch_size"},
    ),
    ("queries", "boxes", "conditioning", "conditioning.BoxQueries", {**QUERIES, "boxes_path": "input.boxes"}),
    ("grouping", "slots", "perceptual_grouping", "perceptual_grouping.TruncatedSlotAttentionGrouping", GROUPING),
    ("grouping", "video_slots", "perceptual_grouping", "perceptual_grouping.VideoSlotAttentionGrouping", GROUPING),
    ("grouping", "blocks", "perceptual_grouping", "perceptual_grouping.BlockSlotAttentionGrouping", GROUPING),
    ("grouping", "invariant", "perceptual_grouping", "invariant.InvariantSlotAttentionGrouping", GROUPING),
    ("grouping", "video_invariant", "perceptual_grouping", "invariant.VideoInvariantSlotAttentionGrouping", GROUPING),
    ("grouping", "tae", "perceptual_grouping", "tae.TaeSlotAttentionGrouping", GROUPING),
    (
        *("predictor", "temporal", "predictor", "perceptual_grouping.TemporalPredictor"),
        {"object_dim": SLOT, "normalize": True, "slots_path": "perceptual_grouping.objects"},
    ),
    ("frames", "fold", "frames", "video.FoldFrames", {"video_path": "input.image"}),
    (
        *("decoder", "tokens", "decoder", "decoding.TokenDecoder"),
        {**TOKENS, "num_layers": _shared("decoder.num_layers", 8), "num_heads": _shared("decoder.num_heads", 8)},
    ),
    ("decoder", "tae", "decoder", "tae.TaeTokenDecoder", {**TOKENS, "guidance_dim": SLOT, "dim": SLOT}),
    ("decoder", "mixture", "decoder", "mixture.MixtureDecoder", TOKENS),
    ("decoder", "framed_mixture", "decoder", "mixture.FramedMixtureDecoder", TOKENS),
    (
        *("decoder", "diffusion", "decoder", "diffusion.DiffusionDecoder"),
        {
            **DECODER,
            "channels": _shared("diffusion.channels", "[128,256,384,512]"),
            "betas": [0.0015, 0.0195],
            "num_heads": _shared("diffusion.num_heads", 8),
            "beta_schedule": "scaled_linear",
        },
    ),
    ("quantizer", "msf", "quantizer", "fusion.MultiScaleFusion", {**QUANTIZER, "num_scales": SCALES}),
    ("quantizer", "vq", "quantizer", "quantization.VectorQuantizer", QUANTIZER),
    ("quantizer", "gdr", "quantizer", "quantization.GroupedQuantizer", QUANTIZER),
    ("quantizer", "fsq", "quantizer", "finite_scalar.FiniteScalarQuantizer", QUANTIZER),
    ("quantizer", "msf_tae", "quantizer", "tae.TaeFusion", {**QUANTIZER, "num_scales": SCALES}),
    ("quantizer", "gdr_tae", "quantizer", "tae.TaeGroups", QUANTIZER),
    ("vae", "vqvae", "vqvae", "autoencoder.VQVAE", {**VAE, **IMAGE}),
    ("vae", "encoder", "vae_encoder", "autoencoder.Encoder", {**VAE_PART, "input_path": "input.image"}),
    ("vae", "decoder", "vae_decoder", "autoencoder.Decoder", {**VAE_PART, "input_path": "guidance.features"}),
    ("vae", "tiny_encoder", "vae_encoder", "tiny_autoencoder.TinyEncoder", {**VAE_PART, "image_path": "input.image"}),
    ("vae", "tiny_decoder", "vae_decoder", "tiny_autoencoder.TinyDecoder", {**VAE_PART, **DECODED}),
    ("vae", "frozen", "guidance", "guidance.FrozenGuidance", {"vae": _part("autoencoder.VQVAE", **VAE), **IMAGE}),
]

_LOSSES: List[Tuple[str, str, Dict[str, str]]] = [
    (
        "tokens",
        "GroupedCrossEntropy",
        {"logits": "decoder.logits", "indices": "guidance.indices", "tokens": "decoder.tokens"},
    ),
    ("pyramid", "PyramidLoss", {"reconstructions": "vqvae.reconstructions", "pyramid": "vqvae.pyramid"}),
    ("weighted", "WeightedLoss", {"loss": "vqvae.commitment_loss"}),
    ("norm", "NormLoss", {"encodings": "vqvae.encodings"}),
    ("sparsity", "SlotSparsity", {"attention": "perceptual_grouping.feature_attributions"}),
]

_SCORES: List[Tuple[str, str, Dict[str, Any]]] = [
    ("ari", "ARI", {"foreground": False, **MASKS}),
    ("ari_fg", "ARI", {"foreground": True, **MASKS}),
    ("samples", "ScoredSamples", {"target_path": "input.mask", "ignore_path": "input.void"}),
    ("sized_miou", "SizedMaskIoU", {"ignore_background": True, **MASKS}),
    ("separability", "ObjectSeparability", {"guidance_path": "guidance.features"}),
]

COMPONENTS: List[Component] = [
    *(
        Component(group, name, f"models.{place}", f"routed.ocl_msf.{target}", settings)
        for group, name, place, target, settings in _MODELS
    ),
    Component(
        "encoder",
        "pyramid",
        "models.pyramid",
        "routed.ocl_msf.feature_extractors.PyramidFeatureExtractor",
        {"num_scales": 3},
        {"models": {"_target_": "ocl_msf.composition.pyramid_models", "_recursive_": False}},
        {"fusion": "sum"},
    ),
    Component(
        *("queries", "preheated", "models.conditioning", "routed.ocl_msf.preheating.PreheatedQueries"),
        {**PREHEATED, "queries": COLD},
        {
            "models": {"perceptual_grouping": {"conditioning_path": "conditioning.queries"}},
            "losses": {"preheating": PREHEATING},
        },
    ),
    Component(
        *("queries", "preheated_boxes", "models.conditioning", "routed.ocl_msf.preheating.PreheatedQueries"),
        {**PREHEATED, "queries": COLD_BOXES, "boxes_path": "input.boxes"},
        {"losses": {"preheating": {**PREHEATING, **OF_FRAMES}}},
    ),
    Component("fusion", "finest", "models.pyramid.fusion", "ocl_msf.grid_fusion.FinestScale"),
    Component("fusion", "sum", "models.pyramid.fusion", "ocl_msf.grid_fusion.SumScales"),
    Component(
        "fusion",
        "concat",
        "models.pyramid.fusion",
        "ocl_msf.grid_fusion.ConcatScales",
        {**ON_GRID, "num_scales": "${models.pyramid.num_scales}"},
    ),
    Component(
        "fusion",
        "msf",
        "models.pyramid.fusion",
        "ocl_msf.grid_fusion.QuantizedScales",
        {**ON_GRID, "quantizer": {**IN_PYRAMID, "replace_below": 0.1}},
        {"losses": {"pyramid_codebook": _weighted("codebook_loss", 1.0), **COMMITMENT}},
    ),
    Component(
        "fusion",
        "frozen_msf",
        "models.pyramid.fusion",
        "ocl_msf.grid_fusion.QuantizedScales",
        {**ON_GRID, "quantizer": _part("grid_fusion.FrozenQuantizer", quantizer=IN_PYRAMID)},
        {"losses": COMMITMENT, "experiment": {"callbacks": {"load_quantizer": LOAD_QUANTIZER}}},
    ),
    *(
        Component("inter_scale", name.lower(), "experiment.quantizer.inter_scale", f"ocl_msf.fusion.{name}")
        for name in ("Vote", "Separate", "Sum")
    ),
    Component(
        "inter_scale",
        "concat",
        "experiment.quantizer.inter_scale",
        "ocl_msf.fusion.Concat",
        {"dim": CHANNELS, "num_scales": SCALES},
    ),
    *(
        Component(
            "loss",
            name,
            f"losses.{name}",
            f"routed.ocl_msf.losses.{target}",
            {f"{argument}_path": path for argument, path in paths.items()},
        )
        for name, target, paths in _LOSSES
    ),
    *(
        Component("score", name, f"evaluation_metrics.{name}", f"routed.ocl_msf.metrics.{target}", settings)
        for name, target, settings in _SCORES
    ),
]


def register(store: Any) -> None:
    """Call `store(name, config, group, package)` for every component; each clears its place before."""
    for part in COMPONENTS:
        node: Dict[str, Any] = dict(part.also)
        _set(node, part.place, {"_target_": part.target, **part.settings})
        empty: Dict[str, Any] = {}
        _set(empty, part.place, None)
        cleared = part.place.replace(".", "_")
        store(cleared, empty, group="msf/cleared", package="_global_")
        choices = [{f"/msf/{group}": name} for group, name in part.choices.items()]
        node["defaults"] = [f"/msf/cleared/{cleared}", "_self_", *choices]
        store(part.name, node, group=f"msf/{part.group}", package="_global_")
    pyramid = {"defaults": [{"/msf/encoder": "pyramid"}]}
    store("pyramid", pyramid, group="msf", package="_global_")


def _set(config: Dict[str, Any], place: str, value: Any) -> None:
    """Set a value at a dotted place, without changing the dictionaries on the way, which others may share."""
    key, _, rest = place.partition(".")
    if rest:
        config[key] = dict(config.get(key, {}))
        _set(config[key], rest, value)
    else:
        config[key] = value
