"""Checkpoints of MSF's authors as runs of ours.

`authors_slate_msf.json` has the names and shapes of a small model in their layout, SLATE with MSF, and what their own
code (Genera1Z/MultiScaleFusion) made of its weights and images, both of which are drawn here from seeds.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ocl.cli.train import build_model_from_config

import ocl_msf
from ocl_msf.cli import main
from ocl_msf.experiments.authors import import_checkpoint
from ocl_msf.experiments.runs import Run
from ocl_msf.files import DataError
from ocl_msf.tiny_autoencoder import TinyDecoder

pytestmark = pytest.mark.needs_host

FIXTURE = json.loads((Path(__file__).parent / "authors_slate_msf.json").read_text())
SMALL_VIT = ["experiment.vit.name=deit_tiny_patch16_224"]


def draw_weights(shapes):
    """Weights of moderate size, by names in order."""
    random, weights = np.random.RandomState(0), {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if name.endswith(("bias", "_pe")) or "pos_embed" in name or "logstd" in name:
            values = 0.1 * values
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        elif "codebook" not in name:
            values = values * max(np.prod(shape[1:]), 1) ** -0.5
        weights[name] = torch.from_numpy(np.asarray(values, np.float32))
    return weights


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / "slate_r_vqvae-coco-msf.pth"
    torch.save(draw_weights(FIXTURE["shapes"]), path)
    return path


@pytest.fixture(scope="module")
def run(theirs, tmp_path_factory):
    return import_checkpoint(theirs, "slate_coco", tmp_path_factory.mktemp("ours") / "run", settings=SMALL_VIT)


def test_slots_masks_indices_and_loss_are_those_of_their_code(run):
    opened = Run.open(run)
    model = build_model_from_config(opened.config, str(opened.checkpoint)).eval()
    images = torch.from_numpy(np.random.RandomState(1).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32))
    tree = {"input": {"image": images, "batch_size": 2}}
    with torch.no_grad():
        for name, module in model.models.items():
            tree[name] = module(inputs=tree)
        loss = model.losses["tokens"](inputs=tree)[0]
    grouping = tree["perceptual_grouping"]
    for found, name in ((grouping.objects, "slots"), (grouping.feature_attributions, "masks")):
        torch.testing.assert_close(found.flatten(), torch.tensor(FIXTURE[name]), atol=1e-4, rtol=1e-4)
    assert tree["guidance"].indices.flatten().tolist() == FIXTURE["indices"]
    assert loss.item() == pytest.approx(FIXTURE["loss"], rel=1e-4)


def test_the_run_is_loaded_like_any_other(run):
    result = ocl_msf.load(run)(torch.zeros(2, 3, 64, 64))
    assert result.slots.shape == (2, 3, 32) and result.reconstruct().shape == (2, 3, 64, 64)


def test_their_stage_one_gives_the_decoder_that_draws(theirs, tmp_path):
    shapes = {
        "m.decode.0.weight": [8, 32, 1, 1],
        "m.decode.0.bias": [8],
        "m.decode.1.weight": [8],
        "m.decode.1.bias": [8],
    }
    for name, x in TinyDecoder(32, 8).layers.state_dict().items():
        number, _, rest = name.partition(".")
        shapes[f"m.decode.2.{int(number) - 2}.{rest}"] = list(x.shape)
    weights = draw_weights(shapes)
    torch.save(weights, tmp_path / "vae.pth")
    run = import_checkpoint(theirs, "slate_coco", tmp_path / "run", tmp_path / "vae.pth", SMALL_VIT)
    decoder = torch.load(Run.open(run).checkpoint, weights_only=True)["state_dict"]
    beginning = "models.guidance.vae.decoder"
    assert torch.equal(decoder[f"{beginning}.layers.18.weight"], weights["m.decode.2.16.weight"])
    assert torch.equal(decoder[f"{beginning}.project.weight"], weights["m.decode.0.weight"])
    with pytest.raises(DataError, match="has no decoder of a VAE of stage 1"):
        import_checkpoint(theirs, "slate_coco", tmp_path / "other", theirs, SMALL_VIT)


def test_what_cannot_be_imported_is_said_in_a_sentence(theirs, tmp_path):
    weights = torch.load(theirs, weights_only=True)
    cases = {
        "gone.pth": (None, "There is no checkpoint"),
        "pickled.pth": (torch.nn.Linear(1, 1), "pickled objects, which are never loaded"),
        "more.pth": ({**weights, "m.transit.weight": torch.zeros(1)}, "has transit.weight, which is in no model"),
        "less.pth": ({k: x for k, x in weights.items() if "norm1q" not in k}, "norm_slots.bias.* differ"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(DataError, match=message):
            import_checkpoint(tmp_path / name, "slate_coco", tmp_path / "run", settings=SMALL_VIT)
    with pytest.raises(DataError, match="does not fit the experiment nonsense"):
        import_checkpoint(theirs, "nonsense", tmp_path / "run", settings=SMALL_VIT)
    assert not (tmp_path / "run").exists(), "nothing is written unless all is right"
    with pytest.raises(SystemExit) as ending:
        main(["import", "authors", str(tmp_path / "gone.pth"), "--experiment", "slate_coco"])
    assert "There is no checkpoint" in str(ending.value)


def test_the_command_writes_a_run(theirs, tmp_path, capsys):
    main(
        [
            "import",
            "authors",
            str(theirs),
            "--experiment",
            "slate_coco",
            "--out",
            str(tmp_path / "run"),
            "--set",
            *SMALL_VIT,
        ]
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "run")
    assert Run.open(tmp_path / "run").setting("variant") == "msf_tae"
    with pytest.raises(DataError, match="exists"):
        import_checkpoint(theirs, "slate_coco", tmp_path / "run")
