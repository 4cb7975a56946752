"""What a model is made of, without its training: the `config.json` of an exported model."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence

from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ocl_msf import __version__
from ocl_msf._host import require_host
from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError

with require_host():
    import ocl.cli.train  # noqa: F401  it registers the resolvers that configs of runs use

FORMAT = 1
# Modules whose classes and functions the configuration of somebody else's model may build.
TRUSTED = frozenset(
    """
    ocl_msf.autoencoder ocl_msf.codebook ocl_msf.composition ocl_msf.conditioning ocl_msf.decoding ocl_msf.diffusion
    ocl_msf.dilated ocl_msf.feature_extractors ocl_msf.finite_scalar ocl_msf.fusion ocl_msf.grid_fusion ocl_msf.guidance
    ocl_msf.invariant ocl_msf.mixture ocl_msf.perceptual_grouping ocl_msf.preheating ocl_msf.projection ocl_msf.pyramid
    ocl_msf.quantization ocl_msf.tae ocl_msf.tiny_autoencoder ocl_msf.transformer ocl_msf.video ocl_msf.vit
    ocl.conditioning ocl.decoding ocl.feature_extractors ocl.neural_networks ocl.neural_networks.extensions
    ocl.neural_networks.positional_embedding ocl.neural_networks.slate ocl.neural_networks.wrappers
    ocl.perceptual_grouping ocl.preprocessing ocl.scheduling ocl.utils.masking ocl.utils.resizing ocl.utils.routing
    torch.nn torchvision.transforms
    """.split()
)


@dataclass(frozen=True)
class Description:
    """A model of stage 2 as plain values; nothing in it needs a config, an environment variable or training data.

    Attributes:
        model: such as slate.
        data: what it was trained on, such as clevrtex.
        variant: of its VAE, such as msf; "" without one.
        video: it takes videos.
        image_size: side of the squares that it takes, in pixels.
        precision: Lightning's name of the precision in which it is evaluated.
        image_transform: the config of what prepares a picture or video.
        models: the config of its parts.
        version: of ocl_msf that wrote this.
        format: of this file.
    """

    model: str
    data: str
    variant: str
    video: bool
    image_size: int
    precision: str
    image_transform: Dict[str, Any]
    models: Dict[str, Any]
    version: str = __version__
    format: int = FORMAT

    @classmethod
    def of_run(cls, run: Run) -> "Description":
        """Describe the model of a run.

        Raises:
            DataError: it is none of stage 2, or its configuration needs what is not there.
        """
        if run.stage != 2:
            raise DataError(
                f"{run.folder} is no run of stage 2, which has slots. Take one, such as "
                "outputs/msf/slate_<data>/<time>, or a checkpoint in it."
            )
        try:
            models = OmegaConf.to_container(run.config.models, resolve=True)
            transform = OmegaConf.to_container(run.config.experiment.image_transform, resolve=True)
        except OmegaConfBaseException as error:
            raise DataError(f"The configuration of {run.folder} cannot be resolved: {error}") from error
        names = ("model", "data", "variant", "video", "image_size")
        values: Dict[str, Any] = {name: run.setting(name) for name in names}
        values.update(variant=run.variant, video=bool(values["video"]), image_size=int(values["image_size"]))
        precision = str(OmegaConf.select(run.config, "trainer.precision") or "32-true")
        return cls(**values, precision=precision, image_transform=transform, models=models)  # type: ignore[arg-type]

    @classmethod
    def of_others(cls, content: Any, source: str, trust: Sequence[str] = ()) -> "Description":
        """Take the content of a `config.json`, after a check that it builds nothing but parts of models.

        Args:
            content: as decoded from JSON.
            source: where it is from, for messages.
            trust: further modules whose classes it may build.

        Raises:
            DataError: it was made by a newer version, is damaged, or builds something else.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise DataError(f"{source} describes no model of ocl_msf.")
        if content["format"] > FORMAT:
            newer = f"a newer ocl_msf, {content.get('version')}"
            raise DataError(f"{source} was written by {newer}, and this is {__version__}: update it.")
        if set(content) != fields:
            raise DataError(f"{source} is damaged: it lacks, or should not have, {', '.join(set(content) ^ fields)}.")
        description = cls(**content)
        for part in (description.models, description.image_transform):
            for target in _targets(part, source):
                _check(target, source, trust)
        return description

    @property
    def decoder_inputs(self) -> Dict[str, str]:
        """What the decoder is given of every slot: argument -> attribute of the grouping's output."""
        paths = {name[: -len("_path")]: path for name, path in self.decoder.items() if name.endswith("_path")}
        split = {argument: str(path).partition(".") for argument, path in paths.items() if path}
        return {argument: rest for argument, (part, _, rest) in split.items() if part == "perceptual_grouping" and rest}

    @property
    def decoder(self) -> Mapping[str, Any]:
        """The config of the decoder; empty if there is none."""
        return self.models.get("decoder") or {}

    @property
    def number_of_boxes(self) -> Optional[int]:
        """How many slots start at the boxes of objects in the first frame; None if they start without."""
        conditioning = self.models.get("conditioning") or {}
        return conditioning["n_slots"] - 1 if conditioning.get("boxes_path") else None

    def to_json(self) -> Dict[str, Any]:
        """The same as plain values."""
        return dataclasses.asdict(self)


def _targets(config: Any, source: str) -> Iterator[str]:
    """Every `_target_` of a config; there may be no interpolation, which can read the environment."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        for value in config.values():
            yield from _targets(value, source)
    elif isinstance(config, list):
        for value in config:
            yield from _targets(value, source)
    elif isinstance(config, str) and "${" in config:
        raise DataError(f"{source} is refused: its {config!r} would be filled in from this machine.")


def _check(target: str, source: str, trust: Sequence[str]) -> None:
    name = target[len("routed.") :] if target.startswith("routed.") else target
    module, _, attribute = name.rpartition(".")
    advice = f"If you trust its author, and the module {module}, add trust=[{module!r}]."
    if module not in (*TRUSTED, *trust):
        raise DataError(f"{source} is refused: it would build {target}, which is no known part of a model. {advice}")
    try:
        found = get_object(name)
    except Exception as error:  # of whatever the name leads to
        raise DataError(f"{source} needs {target}, which this version ({__version__}) does not have.") from error
    home = getattr(found, "__module__", "") or ""
    if not any(home == root or home.startswith(f"{root}.") for root in (*TRUSTED, *trust)):
        raise DataError(f"{source} is refused: {target} is not {module}'s own. {advice}")
