"""Saved masks and slots: the same numbers again under the samples' keys, whole or not at all."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from ocl_msf.cli import main
from ocl_msf.data.synthetic.scenes import make_scenes
from ocl_msf.results.figures import read_scenes
from ocl_msf.results.outputs import SaveOutputs, read_outputs

pytestmark = pytest.mark.needs_host

SPLITS = {"train": False, "val": True, "test": True}


def draw(number, *frames, seed=0):
    """Outputs of a model for `number` samples; slots of videos with their frames folded into the batch."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "masks": torch.rand(number, *frames, 3, 8, 6, generator=generator),
        "slots": torch.randn(number, *frames, 3, 5, generator=generator).reshape(-1, 3, 5),
        "image": torch.rand(number, *frames, 3, 8, 6, generator=generator) * 2 - 1,
        "true_masks": torch.rand(number, *frames, 4, 8, 6, generator=generator),
    }


class Model(LightningModule):
    """Hands batches to the module; fails at the sample called "broken"."""

    def __init__(self, saved):
        super().__init__()
        self.saved = saved

    def validation_step(self, batch, index):
        if "broken" in batch["keys"]:
            raise RuntimeError("broken")
        self.saved(**batch, model=self)


def batches(outputs, size, frames=1, keys=None):
    number = len(outputs["masks"])
    keys = keys or [f"{index:03d}.x" for index in range(number)]
    for start in range(0, number, size):
        rows = slice(start, start + size)
        folded = slice(start * frames, (start + size) * frames)
        part = {name: x[folded if name == "slots" else rows] for name, x in outputs.items()}
        yield {**part, "keys": keys[rows]}


def evaluate(saved, *splits):
    options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = Trainer(**options, enable_model_summary=False)
    model = Model(saved)
    for split in splits:
        trainer.validate(model, DataLoader(list(split), batch_size=None), verbose=False)


def test_every_sample_is_read_again_under_its_key(tmp_path):
    outputs = draw(7)
    evaluate(SaveOutputs(tmp_path, {"val": True}, shard_size=3), batches(outputs, 2))
    found = dict(read_outputs(tmp_path / "val"))
    assert list(found) == [f"{index:03d}.x" for index in range(7)]
    for index, sample in enumerate(found.values()):
        assert sample["masks"].dtype == sample["true_masks"].dtype == sample["image"].dtype == np.uint8
        assert np.array_equal(sample["masks"], outputs["masks"][index].argmax(0))
        assert np.array_equal(sample["true_masks"], outputs["true_masks"][index].argmax(0))
        assert np.array_equal(sample["slots"], outputs["slots"][index])
        pixels = (outputs["image"][index].permute(1, 2, 0) + 1) / 2
        assert np.abs(sample["image"] / 255 - pixels.numpy()).max() <= 0.5 / 255 + 1e-6


def test_the_layout_is_the_documented_one(tmp_path):
    outputs = draw(7)
    del outputs["image"], outputs["true_masks"]
    evaluate(SaveOutputs(tmp_path, {"val": True}, shard_size=3), batches(outputs, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
    expected = {f"masks-0-0000{n}.npz" for n in range(3)} | {f"slots-0-0000{n}.safetensors" for n in range(3)}
    assert {path.name for path in (tmp_path / "val").iterdir()} == expected
    with np.load(tmp_path / "val" / "masks-0-00001.npz", allow_pickle=False) as file:
        assert file.files == ["003.x", "004.x", "005.x"]
    slots = safetensors.numpy.load_file(tmp_path / "val" / "slots-0-00002.safetensors")
    assert {key: x.shape for key, x in slots.items()} == {"006.x": (3, 5)}


def test_videos_keep_their_frames(tmp_path):
    outputs = draw(3, 4)
    evaluate(SaveOutputs(tmp_path, {"val": True}), batches(outputs, 2, frames=4))
    for index, (_, sample) in enumerate(read_outputs(tmp_path / "val")):
        assert np.array_equal(sample["masks"], outputs["masks"][index].argmax(1))
        assert np.array_equal(sample["slots"], outputs["slots"][4 * index : 4 * index + 4])
        assert sample["image"].shape == (4, 8, 6, 3) and sample["true_masks"].shape == (4, 8, 6)


def test_scores_of_masks_on_request_and_no_more_samples_than_wanted(tmp_path):
    outputs = draw(5)
    evaluate(SaveOutputs(tmp_path, {"val": True}, num_samples=3, soft=True), batches(outputs, 2))
    found = dict(read_outputs(tmp_path / "val"))
    assert len(found) == 3
    assert np.array_equal(found["002.x"]["masks"], outputs["masks"][2].half())


def test_every_split_has_its_folder(tmp_path):
    first, second = draw(3), draw(2, seed=1)
    evaluate(SaveOutputs(tmp_path, SPLITS), batches(first, 2), batches(second, 2))
    assert {path.name for path in tmp_path.iterdir()} == {"val", "test"}
    for split, outputs in (("val", first), ("test", second)):
        found = [sample["slots"] for _, sample in read_outputs(tmp_path / split)]
        assert np.array_equal(np.stack(found), outputs["slots"])


def test_an_interrupted_evaluation_leaves_the_outputs_of_the_last_one(tmp_path):
    old, new = draw(4), draw(4, seed=1)
    evaluate(SaveOutputs(tmp_path, {"val": True}, shard_size=1), batches(old, 2))
    with pytest.raises(RuntimeError, match="broken"):
        keys = ["a", "b", "broken", "d"]
        evaluate(SaveOutputs(tmp_path, {"val": True}, shard_size=1), batches(new, 2, keys=keys))
    found = [sample["slots"] for _, sample in read_outputs(tmp_path / "val")]
    assert np.array_equal(np.stack(found), old["slots"])
    evaluate(SaveOutputs(tmp_path, {"val": True}), batches(new, 4, keys=["a", "b", "c", "d"]))
    assert [key for key, _ in read_outputs(tmp_path / "val")] == ["a", "b", "c", "d"]
    assert [path.name for path in tmp_path.iterdir()] == ["val"]


def test_no_more_than_a_shard_is_held(tmp_path):
    saved = SaveOutputs(tmp_path, {"val": True}, shard_size=2)
    held = []
    saved.register_forward_hook(lambda module, inputs, output: held.append(len(module.samples)))
    evaluate(saved, batches(draw(9), 3))
    assert max(held) < 2


def test_wrong_use_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be positive"):
        SaveOutputs(tmp_path, {"val": True}, shard_size=0)
    with pytest.raises(ValueError, match="Two samples have the key 'a'"):
        evaluate(SaveOutputs(tmp_path, {"val": True}), batches(draw(4), 2, keys=["a", "b", "c", "a"]))
    with pytest.raises(FileNotFoundError, match=r"\+msf/save=outputs"):
        next(read_outputs(tmp_path / "val"))


PROCESS = """
import os, torch
from types import SimpleNamespace
from ocl_msf.cli import main
from ocl_msf.data.synthetic.scenes import make_scenes
from ocl_msf.results.outputs import SaveOutputs
rank = int(os.environ["LOCAL_RANK"])
torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
strategy = SimpleNamespace(barrier=torch.distributed.barrier, broadcast=lambda x: x)
trainer = SimpleNamespace(callbacks=[], global_rank=rank, is_global_zero=rank == 0, strategy=strategy)
saved = SaveOutputs("outputs", {"val": True}, shard_size=2)
for index in range(rank, 7, 2):
    saved([str(index)], torch.rand(1, 3, 4, 4), torch.full((1, 3, 5), float(index)), SimpleNamespace(trainer=trainer))
trainer.callbacks[0].on_validation_end(trainer, None)
"""


def test_two_processes_save_into_one_folder(run_program, tmp_path):
    """Of unequal parts: four samples on the first, three on the second."""
    (tmp_path / "save.py").write_text(PROCESS)
    done = run_program("save", cwd=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    found = dict(read_outputs(tmp_path / "outputs" / "val"))
    assert set(found) == {str(index) for index in range(7)}
    assert all((sample["slots"] == int(key)).all() for key, sample in found.items())


TINY = [
    "+msf/preset=cpu",
    "experiment.pretraining={steps:1,warmup_steps:0,anneal_steps:1,validate_every:1}",
    "experiment.training={steps:1,warmup_steps:0,validate_every:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:3,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.image_size=32",
    "dataset.name=clevrtex_lmdb",
    "dataset.batch_size=2",
    "dataset.eval_batch_size=2",
    "dataset.num_workers=0",
    "seed=0",
]


@pytest.mark.slow
def test_two_processes_score_and_save_what_one_does(run_program, tmp_path):
    """Of three scenes, so the second process has one less than the first."""
    make_scenes(tmp_path / "raw", 7, size=(48, 36), workers=1)
    options = [
        "--splits",
        "train=:4",
        "val=4:",
        "--size",
        "32",
        "--workers",
        "1",
        "--format",
        "lmdb",
        "--name",
        "clevrtex_lmdb",
    ]
    main(["convert", "clevrtex", str(tmp_path / "raw"), str(tmp_path), *options])

    def call(program, *overrides):
        done = run_program(f"ocl.cli.{program}", *overrides, cwd=tmp_path, DATASET_PREFIX=str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr

    for leaf in ("vqvae_clevrtex", "slate_clevrtex"):
        call("train", f"+experiment=msf/{leaf}", *TINY)
    (run,) = tmp_path.glob("outputs/msf/slate_clevrtex/*")
    reports, outputs, scenes = [], [], []
    for devices in (1, 2):
        folder = tmp_path / f"devices{devices}"
        folder.mkdir()
        command = [f"train_config_path={run}/config/config.yaml", f"output_dir={folder}", "+msf/save=outputs"]
        command += [f"+trainer.devices={devices}"]
        call("eval", "+evaluation=msf/slate_clevrtex", *command)
        assert {path.name for path in folder.iterdir()} == {"metrics.json", "outputs", "scenes.npz", "scenes.png"}
        reports.append(json.loads((folder / "metrics.json").read_text())["metrics"]["val"])
        outputs.append(list(read_outputs(folder / "outputs" / "val")))
        scenes.append(read_scenes(folder / "scenes.npz"))
    for report in reports:
        assert report.pop("slot_gain") is not None  # with the slots of the sample before, on the same device
    assert reports[1] == {name: pytest.approx(score, abs=1e-5) for name, score in reports[0].items()}
    one, two = map(dict, outputs)
    assert len(outputs[1]) == len(one) == 3 and one.keys() == two.keys()
    for key, sample in one.items():
        np.testing.assert_array_equal(two[key]["masks"], sample["masks"])
        np.testing.assert_allclose(two[key]["slots"], sample["slots"], atol=1e-5)
    assert len(scenes[0].keys) == 3
    for whole, gathered in zip(*scenes):
        np.testing.assert_array_equal(gathered, whole)
