"""Too few samples: for a batch, for every rank, or none at all."""

import json

import numpy as np
import pytest
import torch
from ocl.transforms import Filter, SimpleTransform
from PIL import Image

from ocl_msf.cli import main
from ocl_msf.data import open_dataset
from ocl_msf.data.synthetic.scenes import make_scenes

pytestmark = [pytest.mark.needs_host, pytest.mark.oclf]

FORMATS = ["webdataset", "lmdb"]


def same(value):
    return value


def never(image):
    return False


def convert(folder, form, *options):
    options = ["--splits", "val=:4", "train=4:", "--size", "8", "--workers", "1", "--format", form, *options]
    main(["convert", "clevrtex", str(folder / "raw"), str(folder / form), *options])


@pytest.fixture
def scenes(tmp_path):
    """10 scenes, 4 to validate and 6 to train."""
    make_scenes(tmp_path / "raw", 10, size=(32, 24), workers=1)
    return tmp_path


def data_module(folder, form, **options):
    transforms = {"same": SimpleTransform({"image": same}, batch_transform=False)}
    return open_dataset(
        str(folder / form), "clevrtex", **{"train_transforms": transforms, "eval_transforms": transforms, **options}
    )


@pytest.mark.parametrize("form", FORMATS)
def test_fewer_training_samples_than_a_batch_are_an_error_with_both_numbers(scenes, form, monkeypatch):
    convert(scenes, form)
    with pytest.raises(ValueError, match="6 training samples, too few for a batch of 7"):
        data_module(scenes, form, batch_size=7).train_dataloader()
    loader = data_module(scenes, form, batch_size=6, num_workers=0).train_dataloader()
    assert len(list(loader)) == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert data_module(scenes, form, batch_size=3).train_dataloader() is not None
    with pytest.raises(ValueError, match="6 training samples, too few for a batch of 4 for each of 2 processes"):
        data_module(scenes, form, batch_size=4).train_dataloader()


def damage(raw, index, kind):
    path = raw / "clevrtex_full" / "0" / f"CLEVRTEX_full_{index:06d}.png"
    if kind == "image":
        path.write_bytes(b"no image")
    else:
        Image.fromarray(np.full((24, 32), 99, np.uint8)).save(path.with_name(f"{path.stem}_flat.png"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_split_whose_samples_were_all_left_out_is_an_error_with_the_reasons(scenes, form):
    for index in range(4):
        damage(scenes / "raw", index, "mask" if index == 2 else "image")
    damage(scenes / "raw", 5, "mask")  # of the other split
    reasons = r'split val is empty.*3 for "damaged image" \(scene 0, scene 1, scene 3\); 1 for "mask has an object'
    for options in ([], ["--verify"], []):
        with pytest.raises(SystemExit, match=f"error: .*{reasons}.*--overwrite"):
            convert(scenes, form, *options)
    data = data_module(scenes, form, batch_size=2, num_workers=0)
    with pytest.raises(ValueError, match=reasons):
        data.val_dataloader()
    assert len(list(data.train_dataloader())) == 2
    summary = json.loads((scenes / form / "clevrtex" / "summary.json").read_text())
    counts = {reason: entry["count"] for reason, entry in summary["rejected"].items()}
    assert counts == {"damaged image": 3, "mask has an object above 10": 2}


def test_a_filter_that_keeps_nothing_is_an_error(scenes):
    convert(scenes, "lmdb")
    nothing = {"f": Filter(never, ["image"])}
    data = data_module(scenes, "lmdb", batch_size=2, num_workers=0, train_transforms=nothing, eval_transforms=nothing)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(ValueError, match="no batch of 2 samples: this process has [46]"):
            list(loader)
