"""Contract of `ocl.datasets`, `ocl.data_decoding` and `ocl.transforms`."""

import functools
import itertools
import json
import operator
import random
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from ocl import transforms as T
from ocl.datasets import (
    DummyDataModule,
    WebdatasetDataModule,
    collate_with_autopadding,
    collate_with_batch_size,
)


def keep(sample):
    return sample


def add_marker(sample):
    return {**sample, "marker": np.float32(len(sample["__key__"]))}


def append_a(text):
    return text + "a"


def append_b(text):
    return text + "b"


def is_even(value):
    return int(value) % 2 == 0


def first_smaller(a, b):
    return bool(a < b)


def to_tensor(value):
    return torch.as_tensor(np.asarray(value))


def take(*fields, batch=False):
    """A transform whose only effect is to request fields."""
    return T.Map(keep, fields=fields, batch_transform=batch)


def write_shards(folder, shard_tools, counts):
    """Write shards of so many samples each, whose keys count up from 0000; returns them in `{...}` notation."""
    keys = iter(range(sum(counts)))
    for shard, count in enumerate(counts):
        samples = [{"__key__": f"{i:04d}", "x": np.full((2,), i), "y": "t"} for i in itertools.islice(keys, count)]
        shard_tools.samples(folder / f"s-{shard:06d}.tar", samples)
    return f"{folder}/s-{{000000..{len(counts) - 1:06d}}}.tar"


@pytest.fixture
def shards(tmp_path, shard_tools):
    """Four shards with five samples each, keys 0000 .. 0019."""
    return write_shards(tmp_path, shard_tools, [5, 5, 5, 5])


def build(shards, **kwargs):
    options = dict(
        train_shards=shards,
        val_shards=shards,
        test_shards=shards,
        train_size=20,
        val_size=20,
        test_size=20,
        batch_size=4,
        num_workers=0,
        train_transforms={"t": take("x")},
        eval_transforms={"t": take("x")},
    )
    options.update(kwargs)
    return WebdatasetDataModule(**options)


def keys_of(batches):
    return [key for batch in batches for key in batch["__key__"]]


# ---------------------------------------------------------------------------------------------------------- data module


@pytest.mark.core
def test_needs_at_least_one_split(shards):
    with pytest.raises(ValueError):
        WebdatasetDataModule(train_shards=None, val_shards=None, test_shards=None)
    module = build(shards, train_shards=None, test_shards=None)
    for split in ("train", "test"):
        with pytest.raises(ValueError):
            getattr(module, f"{split}_data_iterator")()
        with pytest.raises(ValueError):
            getattr(module, f"{split}_dataloader")()
    assert len(list(module.val_data_iterator())) == 20


@pytest.mark.core
def test_is_a_lightning_datamodule_with_defaults(shards):
    module = WebdatasetDataModule(train_shards=shards, train_size=20)
    assert isinstance(module, pl.LightningDataModule)
    assert module.batch_size == 32 and module.eval_batch_size == 32
    assert WebdatasetDataModule(val_shards=shards, batch_size=3, eval_batch_size=7).eval_batch_size == 7


@pytest.mark.core
def test_batches_have_tensors_keys_and_batch_size(shards):
    batch = next(iter(build(shards).val_dataloader()))
    assert set(batch) == {"__key__", "x", "batch_size"}
    assert batch["batch_size"] == 4 and isinstance(batch["batch_size"], int)
    assert isinstance(batch["__key__"], list) and all(isinstance(k, str) for k in batch["__key__"])
    assert batch["x"].shape == (4, 2) and batch["x"].dtype == torch.int64
    assert batch["x"][:, 0].tolist() == [int(k) for k in batch["__key__"]]


@pytest.mark.core
def test_evaluation_keeps_the_partial_batch_training_drops_it(shards):
    module = build(shards, batch_size=6, eval_batch_size=8)
    assert [b["batch_size"] for b in module.train_dataloader()] == [6, 6, 6]
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert [b["batch_size"] for b in loader] == [8, 8, 4]
    assert len(module.train_dataloader()) == 3 and len(module.val_dataloader()) == 3
    assert len(module.train_data_iterator()) == 20


@pytest.mark.core
def test_length_is_the_declared_size_not_a_count(shards):
    module = build(shards, val_size=9, batch_size=4)
    assert len(module.val_data_iterator()) == 9
    assert len(module.val_dataloader()) == 3
    assert sum(b["batch_size"] for b in module.val_dataloader()) == 20


@pytest.mark.core
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_is_seen_exactly_once(shards, workers):
    module = build(shards, batch_size=5, num_workers=workers)
    assert sorted(keys_of(module.train_dataloader())) == [f"{i:04d}" for i in range(20)]
    module = build(shards, batch_size=3, num_workers=workers)
    assert sorted(keys_of(module.val_dataloader())) == [f"{i:04d}" for i in range(20)]


@pytest.mark.core
def test_more_workers_than_shards_is_fine(shards, tmp_path):
    one = str(tmp_path / "s-000000.tar")
    module = build(one, num_workers=2, batch_size=2, val_size=5)
    assert sorted(keys_of(module.val_dataloader())) == [f"{i:04d}" for i in range(5)]


@pytest.mark.core
def test_lists_and_braces_of_shards(shards, tmp_path):
    single = [str(tmp_path / f"s-00000{i}.tar") for i in (3, 1)]
    assert sorted(s["__key__"] for s in build(single).val_data_iterator())[0] == "0005"
    mixed = [str(tmp_path / "s-00000{0,2}.tar"), str(tmp_path / "s-000003.tar")]
    keys = sorted(s["__key__"] for s in build(mixed).val_data_iterator())
    assert keys == [f"{i:04d}" for i in [*range(5), *range(10, 20)]]


@pytest.mark.core
def test_training_order_is_shuffled_and_reproducible(shards):
    def order(seed, **kwargs):
        torch.manual_seed(seed)
        return keys_of(build(shards, batch_size=20, **kwargs).train_dataloader())

    assert order(1) == order(1)
    assert order(1) != order(2) and order(1) != sorted(order(1))
    # Shards are shuffled as units even without sample shuffling, samples within stay in order.
    plain = [int(k) for k in order(3, shuffle_train=False)]
    assert all(plain[i : i + 5] == list(range(plain[i], plain[i] + 5)) for i in range(0, 20, 5))


@pytest.mark.core
def test_evaluation_does_not_shuffle_within_a_shard(shards, tmp_path):
    one = str(tmp_path / "s-000002.tar")
    for _ in range(3):
        module = build(one, val_size=5)
        assert keys_of(module.val_dataloader()) == [f"{i:04d}" for i in range(10, 15)]


@pytest.mark.core
def test_epochs_can_be_iterated_repeatedly(shards):
    loader = build(shards, batch_size=5).train_dataloader()
    first, second = keys_of(loader), keys_of(loader)
    assert sorted(first) == sorted(second) == [f"{i:04d}" for i in range(20)]
    assert first != second


@pytest.mark.core
def test_only_requested_fields_are_kept(shards, through_pipeline):
    module = build(shards, eval_transforms=None, train_transforms=None)
    assert all(set(s) == {"__key__"} for s in module.val_data_iterator())
    sample = {"__key__": "1", "image": np.zeros(1), "image_id": np.ones(1), "mask": np.ones(1)}
    (kept,) = through_pipeline([sample], take("image"))
    assert set(kept) == {"__key__", "image", "image_id"}  # a prefix is enough to match
    (kept,) = through_pipeline([sample], {"a": take("mask"), "b": take("image_id", batch=True)})
    assert set(kept) == {"__key__", "image_id", "mask"}


@pytest.mark.core
def test_transforms_run_sorted_by_name_and_batch_transforms_last(shards):
    transforms = {
        "2_second": T.SimpleTransform({"y": append_b}, batch_transform=False),
        "0_batch": T.SimpleTransform({"y": functools.partial(operator.add, ["batched"])}, True),
        "1_first": T.SimpleTransform({"y": append_a}, batch_transform=False),
    }
    module = build(shards, eval_transforms=transforms, train_transforms=transforms)
    assert next(iter(module.val_data_iterator()))["y"] == "tab"
    for loader in (module.val_dataloader(), module.train_dataloader()):
        assert next(iter(loader))["y"] == ["batched", "tab", "tab", "tab", "tab"]


@pytest.mark.core
def test_missing_shard_and_missing_field_raise_while_iterating(shards, tmp_path):
    module = build(str(tmp_path / "nope-000000.tar"))
    with pytest.raises(FileNotFoundError):
        list(module.val_data_iterator())
    module = build(shards, eval_transforms={"t": T.SimpleTransform({"absent": abs}, False)})
    with pytest.raises(KeyError):
        list(module.val_data_iterator())


@pytest.mark.core
def test_autopadding_pads_with_zeros_at_the_end(tmp_path, shard_tools):
    samples = [
        {"__key__": "0", "m": np.ones((2, 3), np.float32), "c": np.array([1], np.uint8)},
        {"__key__": "1", "m": np.ones((1, 5), np.float32), "c": np.array([1, 2], np.uint8)},
    ]
    path = shard_tools.samples(tmp_path / "pad.tar", samples)
    options = dict(val_size=2, batch_size=2, eval_transforms={"t": take("m", "c")})
    batch = next(iter(build(path, use_autopadding=True, **options).val_dataloader()))
    assert batch["m"].shape == (2, 2, 5) and batch["m"].dtype == torch.float32
    assert batch["m"][0].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert batch["m"][1].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert batch["c"].tolist() == [[1, 0], [1, 2]] and batch["c"].dtype == torch.uint8
    assert batch["batch_size"] == 2
    with pytest.raises(RuntimeError):
        next(iter(build(path, use_autopadding=False, **options).val_dataloader()))


@pytest.mark.core
def test_worker_processes_pad_as_well(tmp_path, shard_tools):
    samples = [{"__key__": str(i), "m": np.ones(i + 1)} for i in range(3)]
    path = shard_tools.samples(tmp_path / "pad.tar", samples)
    module = build(
        path,
        val_size=3,
        batch_size=3,
        num_workers=1,
        use_autopadding=True,
        eval_transforms={"t": take("m")},
    )
    assert next(iter(module.val_dataloader()))["m"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


# Workers come from a fork server: forking a process that holds gloo's threads can deadlock inside CPython 3.11.
RANK = """
import json, multiprocessing, os, sys, warnings
warnings.filterwarnings("ignore")
import torch
from ocl.datasets import WebdatasetDataModule
from ocl.transforms import SimpleTransform


def read(loader):
    return [batch["__key__"] for batch in loader]


if __name__ == "__main__":
    if sys.version_info >= (3, 9):
        multiprocessing.set_start_method("forkserver")
        multiprocessing.set_forkserver_preload(["ocl.datasets"])
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    transforms = {"t": SimpleTransform({"x": abs}, batch_transform=False)}
    results = []
    for options in json.loads(sys.argv[1]):
        torch.manual_seed(100 + rank)  # ranks have to agree on the order of the shards all the same
        module = WebdatasetDataModule(train_transforms=transforms, eval_transforms=transforms, **options)
        train = module.train_dataloader()
        length = len(train) if options.get("train_size") else None
        results.append({"train": read(train), "train_len": length, "val": read(module.val_dataloader())})
        torch.distributed.barrier()
    with open(f"result{rank}.json", "w") as file:
        json.dump(results, file)
"""
RANK_SCENARIOS = {  # samples of the shards, options
    "even": ((5, 5, 5, 5), {"num_workers": 2, "batch_size": 5}),
    "uneven": ((5, 5, 5), {"num_workers": 0, "batch_size": 2}),
}
MODERN_RANK_SCENARIOS = {  # OCLF 0.1 would wait for ever
    "one shard": ((9,), {"num_workers": 2, "batch_size": 2}),
    "unequal shards": ((9, 2, 4), {"num_workers": 0, "batch_size": 2}),
    "no size": ((9, 2, 4, 3), {"num_workers": 0, "batch_size": 2, "train_size": None, "val_size": None}),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, shard_tools, run_program):
    """What two ranks read: name of the scenario -> the batches of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    scenarios = dict(RANK_SCENARIOS, **(MODERN_RANK_SCENARIOS if sys.version_info >= (3, 9) else {}))
    arguments = []
    for name, (counts, options) in scenarios.items():
        shards, size = write_shards(folder / name, shard_tools, counts), sum(counts)
        arguments.append(dict(train_shards=shards, val_shards=shards, train_size=size, val_size=size))
        arguments[-1].update(options)
    (folder / "rank.py").write_text(RANK)
    done = run_program("rank", json.dumps(arguments), cwd=folder, ranks=2)
    assert done.returncode == 0, done.stderr
    results = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(2)]
    return dict(zip(scenarios, zip(*results)))


@pytest.mark.slow
@pytest.mark.core
def test_ranks_read_disjoint_shards(two_ranks):
    """With as many shards as ranks x workers the split is even, complete and disjoint."""
    first, second = two_ranks["even"]
    for split in ("train", "val"):
        a, b = (sum(result[split], []) for result in (first, second))
        assert len(a) == len(b) == 10
        assert sorted(a + b) == [f"{i:04d}" for i in range(20)]


@pytest.mark.slow
@pytest.mark.core
def test_ranks_cover_all_evaluation_samples(two_ranks):
    """Also with an uneven number of shards no evaluation sample gets lost."""
    seen = [key for result in two_ranks["uneven"] for batch in result["val"] for key in batch]
    assert set(seen) == {f"{i:04d}" for i in range(15)}


@pytest.mark.slow
@pytest.mark.modern
@pytest.mark.core
@pytest.mark.parametrize("name", ["uneven", *MODERN_RANK_SCENARIOS])
def test_ranks_train_in_step_and_evaluate_every_sample_once(two_ranks, name):
    """Unequal numbers of batches would deadlock distributed training."""
    n_samples = sum({**RANK_SCENARIOS, **MODERN_RANK_SCENARIOS}[name][0])
    first, second = two_ranks[name]
    assert len(first["train"]) == len(second["train"]) == n_samples // 4
    assert first["train_len"] == second["train_len"]
    assert all(len(batch) == 2 for batch in first["train"] + second["train"])
    assert len(set(sum(first["train"] + second["train"], []))) == n_samples // 4 * 4
    assert first["val"] and second["val"]
    assert sorted(sum(first["val"] + second["val"], [])) == [f"{i:04d}" for i in range(n_samples)]


class Collector(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.keys = []

    def validation_step(self, batch, batch_idx):
        self.keys += batch["__key__"]


@pytest.mark.core
def test_lightning_validation_sees_all_samples(shards, make_trainer):
    module, collector = build(shards, batch_size=3), Collector()
    make_trainer().validate(collector, dataloaders=module.val_dataloader(), verbose=False)
    assert sorted(collector.keys) == [f"{i:04d}" for i in range(20)]


@pytest.mark.modern
@pytest.mark.core
def test_lightning_validation_sees_all_samples_with_workers(shards, make_trainer):
    """Partial batches of several workers must not be cut off by the reported length."""
    module, collector = build(shards, batch_size=4, num_workers=2), Collector()
    make_trainer().validate(collector, dataloaders=module.val_dataloader(), verbose=False)
    assert sorted(collector.keys) == [f"{i:04d}" for i in range(20)]


@pytest.mark.modern
@pytest.mark.core
def test_sizes_are_optional(shards, make_trainer):
    module, collector = build(shards, val_size=None, train_size=None, batch_size=3), Collector()
    assert sum(b["batch_size"] for b in module.train_dataloader()) == 18
    make_trainer().validate(collector, dataloaders=module.val_dataloader(), verbose=False)
    assert len(collector.keys) == 20


@pytest.mark.modern
@pytest.mark.compat
def test_closures_work_in_transforms(shards):
    offset = 100
    transforms = {"t": T.SimpleTransform({"x": lambda x: x + offset}, batch_transform=False)}
    batch = next(iter(build(shards, eval_transforms=transforms).val_dataloader()))
    assert batch["x"].min() >= 100


# -------------------------------------------------------------------------------------------------------------- collate


@pytest.mark.core
@pytest.mark.parametrize("collate", [collate_with_batch_size, collate_with_autopadding])
def test_collate_common_types(collate):
    out = collate(
        [
            {"a": torch.ones(2), "n": np.zeros(3, np.int16), "f": 1.5, "i": 3, "s": "x", "l": [1, 2]},
            {"a": torch.zeros(2), "n": np.ones(3, np.int16), "f": 2.5, "i": 4, "s": "y", "l": [3, 4]},
        ]
    )
    assert out["a"].tolist() == [[1, 1], [0, 0]]
    assert out["n"].shape == (2, 3) and out["n"].dtype == torch.int16
    assert out["f"].dtype == torch.float64 and out["f"].tolist() == [1.5, 2.5]
    assert out["i"].dtype == torch.int64 and out["i"].tolist() == [3, 4]
    assert out["s"] == ["x", "y"]
    assert [v.tolist() for v in out["l"]] == [[1, 3], [2, 4]]
    assert out["batch_size"] == 2


@pytest.mark.core
def test_collate_scalars_and_nested_dicts():
    out = collate_with_autopadding([{"d": {"v": np.float32(1)}}, {"d": {"v": np.float32(2)}}])
    assert out["d"]["v"].tolist() == [1.0, 2.0] and out["batch_size"] == 2
    assert collate_with_batch_size([torch.tensor(1), torch.tensor(2)]).tolist() == [1, 2]


@pytest.mark.core
def test_autopadding_rejects_rank_mismatch_and_unknown_types():
    with pytest.raises(ValueError):
        collate_with_autopadding([torch.zeros(2), torch.zeros(2, 2)])
    with pytest.raises(TypeError):
        collate_with_autopadding([object(), object()])
    with pytest.raises(TypeError):
        collate_with_autopadding([np.array(["a", "b"]), np.array(["a", "b"])])


@pytest.mark.core
def test_autopadding_is_exact_for_equal_shapes_and_pads_every_axis():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(collate_with_autopadding([a, b]), torch.stack([a, b]))
    c = torch.ones(1, 4, dtype=torch.int64)
    out = collate_with_autopadding([torch.ones(3, 2, dtype=torch.int64), c])
    assert out.shape == (2, 3, 4) and out.dtype == torch.int64
    assert out.sum() == 10 and out[0, :, 2:].sum() == 0 and out[1, 1:].sum() == 0


# --------------------------------------------------------------------------------------------------------- dummy module


@pytest.mark.compat
def test_dummy_data_module():
    module = DummyDataModule(
        data_shapes={"img": [8, 6, 3], "m": [5, 4, 4, 1], "u": [2], "b": [3], "c": [7], "c2": [7]},
        data_types={
            "img": "image",
            "m": "mask",
            "u": "uniform",
            "b": "binary",
            "c": "categorical_4",
            "c2": "categorical_3_9",
        },
        batch_size=4,
        train_transforms={
            "a": T.SimpleTransform({"u": np.negative}, batch_transform=False),
            "b": T.SimpleTransform({"u": to_tensor}, batch_transform=False),
        },
    )
    assert (module.train_size, module.val_size, module.test_size) == (13, 8, 8)
    batches = list(module.train_dataloader())
    assert [b["batch_size"] for b in batches] == [4, 4, 4, 1]
    batch = batches[0]
    assert batch["__key__"] == ["0", "1", "2", "3"]
    assert batch["img"].shape == (4, 8, 6, 3) and batch["img"].dtype == torch.uint8
    assert batch["m"].shape == (4, 5, 4, 4, 1) and torch.all(batch["m"].sum(1) == 1)
    assert batch["u"].dtype == torch.float32 and batch["u"].max() <= 0
    assert batch["b"].dtype == torch.bool
    assert batch["c"].dtype == torch.uint8 and batch["c"].max() < 4
    assert batch["c2"].min() >= 3 and batch["c2"].max() < 9
    assert [b["batch_size"] for b in module.val_dataloader()] == [4, 4]
    assert next(iter(module.test_dataloader()))["u"].min() >= 0
    with pytest.raises(ValueError):
        DummyDataModule({"x": [1]}, {"x": "unheard_of"}).train_dataloader()


@pytest.mark.compat
def test_dummy_data_module_accepts_arguments_of_real_modules():
    module = DummyDataModule(
        {"x": [2]},
        {"x": "uniform"},
        batch_size=2,
        eval_batch_size=3,
        train_size=5,
        val_size=6,
        test_size=1,
        train_shards="ignored",
        val_shards="ignored",
        test_shards="ignored",
        num_workers=4,
    )
    assert [b["batch_size"] for b in module.train_dataloader()] == [2, 2, 1]
    assert [b["batch_size"] for b in module.val_dataloader()] == [3, 3]
    assert [b["batch_size"] for b in module.test_dataloader()] == [1]


# ------------------------------------------------------------------------------------------------------------- decoding


@pytest.fixture
def decode(tmp_path, shard_tools):
    def run(members, fields):
        path = shard_tools.tar(tmp_path / "d.tar", members)
        module = WebdatasetDataModule(val_shards=path, val_size=1, eval_transforms={"t": take(*fields)})
        return list(module.val_data_iterator())

    return run


@pytest.mark.core
def test_arrays_and_compression(decode, shard_tools):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    (sample,) = decode(
        [("0.a.npy", shard_tools.npy(array)), ("0.b.npy.gz", shard_tools.gz(shard_tools.npy(array)))],
        ["a", "b"],
    )
    assert set(sample) == {"__key__", "a", "b"} and sample["__key__"] == "0"
    for name in "ab":
        assert isinstance(sample[name], np.ndarray) and sample[name].dtype == np.int32
        assert np.array_equal(sample[name], array)


@pytest.mark.core
def test_images_become_rgb_uint8(decode, shard_tools):
    rng = np.random.RandomState(0)
    rgb = rng.randint(0, 256, (4, 5, 3), dtype=np.uint8)
    gray = rng.randint(0, 256, (4, 5), dtype=np.uint8)
    rgba = np.concatenate([rgb, np.full((4, 5, 1), 7, np.uint8)], axis=-1)
    (sample,) = decode(
        [
            ("0.rgb.png", shard_tools.png(rgb)),
            ("0.gray.PNG", shard_tools.png(gray)),
            ("0.rgba.png", shard_tools.png(rgba)),
        ],
        ["rgb", "gray", "rgba"],
    )
    assert sample["rgb"].dtype == np.uint8 and np.array_equal(sample["rgb"], rgb)
    assert np.array_equal(sample["gray"], np.repeat(gray[..., None], 3, axis=-1))
    assert np.array_equal(sample["rgba"], rgb)


@pytest.mark.core
def test_text_numbers_json_and_tensors(decode, tmp_path):
    torch.save(torch.arange(3), tmp_path / "t.pt")
    (sample,) = decode(
        [
            ("0.txt1.txt", b"hello"),
            ("0.label.cls", b"12"),
            ("0.index.id", b"3"),
            ("0.meta.json", b'{"a": [1, 2]}'),
            ("0.tensor.pt", (tmp_path / "t.pt").read_bytes()),
        ],
        ["txt1", "label", "index", "meta", "tensor"],
    )
    assert sample["txt1"] == "hello" and sample["label"] == 12 and sample["index"] == 3
    assert sample["meta"] == {"a": [1, 2]}
    assert torch.equal(sample["tensor"], torch.arange(3))


@pytest.mark.core
def test_dotted_field_names_keep_their_inner_dots(decode, shard_tools):
    (sample,) = decode([("0.objects.bbox.npy", shard_tools.npy(np.ones((2, 4))))], ["objects.bbox"])
    assert sample["objects.bbox"].shape == (2, 4)


@pytest.mark.core
def test_members_group_by_basename_up_to_first_dot(decode):
    samples = decode(
        [
            ("folder/a1.t.txt", b"1"),
            ("folder/a1.u.txt", b"2"),
            ("folder/README", b"ignored"),
            ("folder/b2.t.txt", b"3"),
        ],
        ["t", "u"],
    )
    assert samples == [{"__key__": "a1", "t": "1", "u": "2"}, {"__key__": "b2", "t": "3"}]


@pytest.mark.compat
def test_unknown_extensions_stay_as_readable_streams(decode):
    (sample,) = decode([("0.video.mp4", b"raw"), ("0._note.txt", b"kept")], ["video"])
    assert set(sample) == {"__key__", "video.mp4", "_note.txt"}
    assert sample["video.mp4"].read() == b"raw"
    assert sample["_note.txt"] == "kept"


# ----------------------------------------------------------------------------------------------------------- transforms


@pytest.mark.core
def test_transform_is_abstract_and_subclasses_declare_their_needs():
    with pytest.raises(TypeError):
        T.Transform()
    assert T.SimpleTransform({"a": abs, "b": abs}, batch_transform=True).fields == ("a", "b")
    assert T.SimpleTransform({}, batch_transform=True).is_batch_transform is True
    assert T.Map(keep, fields=("a",), batch_transform=False).is_batch_transform is False
    assert tuple(T.Filter(is_even, fields=["a"]).fields) == ("a",)
    assert tuple(T.DuplicateFields({"a": "b"}, batch_transform=False).fields) == ("a",)
    assert isinstance(T.Filter(is_even, fields=["a"]), T.Transform)


@pytest.mark.core
def test_simple_transform_and_map(through_pipeline):
    sample = {"__key__": "12", "a": np.array([-1.0]), "b": np.array([-2.0])}
    (out,) = through_pipeline(
        [sample],
        {
            "1": T.SimpleTransform({"a": np.abs}, batch_transform=False),
            "2": T.Map(add_marker, fields=("b",), batch_transform=False),
        },
    )
    assert out["a"] == 1.0 and out["b"] == -2.0 and out["marker"] == 2.0


@pytest.mark.core
def test_filter_passes_fields_positionally(through_pipeline):
    samples = [{"__key__": str(i), "a": np.array(i), "b": np.array(3)} for i in range(6)]
    kept = through_pipeline(samples, T.Filter(is_even, fields=["a"]))
    assert [s["__key__"] for s in kept] == ["0", "2", "4"]
    kept = through_pipeline(samples, T.Filter(first_smaller, fields=["a", "b"]))
    assert [s["__key__"] for s in kept] == ["0", "1", "2"]


@pytest.mark.core
def test_duplicate_fields(through_pipeline):
    transforms = {
        "1": T.DuplicateFields({"a": "copy"}, batch_transform=False),
        "2": T.SimpleTransform({"copy": np.negative}, batch_transform=False),
    }
    (out,) = through_pipeline([{"__key__": "0", "a": np.array(5.0)}], transforms)
    assert out["a"] == 5.0 and out["copy"] == -5.0


class Pipeline(T.Transform):
    """A third party transform using each operation the pipe object has to offer."""

    is_batch_transform = False

    def __init__(self, shuffle_buffer=None):
        self.shuffle_buffer = shuffle_buffer

    @property
    def fields(self):
        return ("a",)

    @staticmethod
    def twice(stream):
        for sample in stream:
            yield {**sample, "copy": 0}
            yield {**sample, "copy": 1}

    @staticmethod
    def keep_even(sample):
        return int(sample["a"]) % 2 == 0

    def __call__(self, input_pipe):
        pipe = input_pipe.map(add_marker).filter(self.keep_even).then(self.twice)
        pipe = pipe.map_dict({"a": np.negative})
        return pipe.shuffle(buffer_size=self.shuffle_buffer) if self.shuffle_buffer else pipe


@pytest.mark.core
def test_pipe_operations_for_custom_transforms(through_pipeline):
    samples = [{"__key__": str(i), "a": np.array(i)} for i in range(4)]
    out = through_pipeline(samples, Pipeline())
    assert [(s["__key__"], int(s["a"]), s["copy"]) for s in out] == [
        ("0", 0, 0),
        ("0", 0, 1),
        ("2", -2, 0),
        ("2", -2, 1),
    ]
    assert all(s["marker"] == 1.0 for s in out)
    shuffled = through_pipeline(samples, Pipeline(shuffle_buffer=10))
    assert sorted((s["__key__"], s["copy"]) for s in shuffled) == [(s["__key__"], s["copy"]) for s in out]


class BatchScale(T.Transform):
    is_batch_transform = True
    fields = ("x",)

    @staticmethod
    def scale(batch):
        batch["x"] = batch["x"].float() * 10
        return batch

    def __call__(self, input_pipe):
        return input_pipe.map(self.scale)


@pytest.mark.core
def test_custom_batch_transform(shards):
    batch = next(iter(build(shards, eval_transforms={"b": BatchScale()}).val_dataloader()))
    assert batch["x"][:, 0].tolist() == [10.0 * int(k) for k in batch["__key__"]]


def video(key, frames=9, **extra):
    return {"__key__": key, "image": np.arange(frames * 2).reshape(frames, 2), **extra}


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 3, -1])
def test_sample_slices_is_deterministic_per_key(through_pipeline, count):
    transform = T.SampleSlices(count, fields=["image"], seed=11, shuffle_buffer_size=1)
    out = through_pipeline([video("0004", note=np.ones(9)), video("17", note=np.ones(9))], transform)
    expected = []
    for key in ("0004", "17"):
        frames = random.Random(int(key) + 11).sample(range(9), k=9 if count == -1 else count)
        expected += [(f"{key}_{f}", [2 * f, 2 * f + 1]) for f in frames]
    assert [(s["__key__"], s["image"].tolist()) for s in out] == expected


@pytest.mark.core
def test_sample_slices_several_fields_and_axis(through_pipeline):
    sample = {"__key__": "3", "a": np.random.rand(2, 5, 3), "ab": np.random.rand(4, 5), "z": np.ones(5)}
    transforms = {"1": T.SampleSlices(2, ["a", "ab"], dim=1, shuffle_buffer_size=1), "2": take("z")}
    out = through_pipeline([sample], transforms)
    assert len(out) == 2
    for s in out:
        frame = int(s["__key__"].split("_")[1])
        assert np.array_equal(s["a"], sample["a"][:, frame])
        assert np.array_equal(s["ab"], sample["ab"][:, frame])
        assert s["z"].shape == (5,)


@pytest.mark.core
def test_sample_slices_default_seed_and_shuffling_keep_content(through_pipeline):
    out = through_pipeline([video(str(k)) for k in range(3)], T.SampleSlices(4, ["image"]))
    expected = {f"{k}_{f}" for k in range(3) for f in random.Random(k + 39480234).sample(range(9), k=4)}
    assert {s["__key__"] for s in out} == expected and len(out) == 12


@pytest.mark.compat
def test_sample_slices_per_epoch_walks_through_all_frames(through_pipeline, monkeypatch):
    transform = T.SampleSlices(4, ["image"], seed=5, per_epoch=True, shuffle_buffer_size=1)
    monkeypatch.delenv("EPOCH", raising=False)
    with pytest.raises(RuntimeError):
        through_pipeline([video("2")], transform)
    order = np.random.RandomState(2 + 5).permutation(9).tolist()
    padded = order + order[:3]  # 9 frames need 3 epochs of 4, filled up from the front
    for epoch in range(3):
        monkeypatch.setenv("EPOCH", str(epoch))
        frames = [int(s["__key__"].split("_")[1]) for s in through_pipeline([video("2")], transform)]
        assert frames == padded[4 * epoch : 4 * epoch + 4]


@pytest.mark.modern
@pytest.mark.compat
def test_sample_slices_per_epoch_cycles_after_one_pass(through_pipeline, monkeypatch):
    transform = T.SampleSlices(3, ["image"], seed=5, per_epoch=True, shuffle_buffer_size=1)
    seen = set()
    for epoch in range(3, 6):
        monkeypatch.setenv("EPOCH", str(epoch))
        seen |= {s["__key__"] for s in through_pipeline([video("2")], transform)}
    assert seen == {f"2_{f}" for f in range(9)}


@pytest.mark.core
@pytest.mark.parametrize("drop_last, pieces", [(True, 2), (False, 3)])
def test_split_consecutive(through_pipeline, drop_last, pieces):
    transform = T.SplitConsecutive(4, ["image"], shuffle_buffer_size=1, drop_last=drop_last)
    out = through_pipeline([video("7", note=np.ones(9))], {"1": transform, "2": take("note")})
    assert [s["__key__"] for s in out] == [f"7_{i}" for i in range(pieces)]
    assert [s["image"][:, 0].tolist() for s in out] == [[0, 2, 4, 6], [8, 10, 12, 14], [16]][:pieces]
    assert all(s["note"].shape == (9,) for s in out)
    shuffled = through_pipeline([video("7")], T.SplitConsecutive(4, ["image"], drop_last=drop_last))
    assert {s["__key__"] for s in shuffled} == {f"7_{i}" for i in range(pieces)}


@pytest.mark.core
def test_sample_consecutive_picks_one_aligned_window(through_pipeline):
    samples = [video(str(i), mask=np.arange(9)) for i in range(40)]
    transform = T.SampleConsecutive(4, fields=["image", "mask"])
    out = through_pipeline(samples, transform)
    windows = {(s["__key__"].split("_")[1], tuple(s["mask"].tolist())) for s in out}
    assert windows == {("0", (0, 1, 2, 3)), ("1", (4, 5, 6, 7))}
    assert all(np.array_equal(s["image"][:, 0], 2 * s["mask"]) for s in out)
    assert [s["__key__"].split("_")[0] for s in out] == [str(i) for i in range(40)]


@pytest.mark.modern
@pytest.mark.core
def test_sample_consecutive_uses_the_last_full_window(through_pipeline):
    samples = [video(str(i), frames=8) for i in range(40)]
    out = through_pipeline(samples, T.SampleConsecutive(4, fields=["image"]))
    assert {s["__key__"].split("_")[1] for s in out} == {"0", "1"}
    (whole,) = through_pipeline([video("0", frames=4)], T.SampleConsecutive(4, fields=["image"]))
    assert whole["image"].shape == (4, 2)


@pytest.mark.compat
def test_video_decoding_transforms_can_be_configured():
    options = dict(fields=["video.mp4"], stride=2, split_extension=True, video_reader_kwargs={})
    for transform in (
        T.VideoDecoder(**options),
        T.DecodeRandomWindow(n_consecutive_frames=6, **options),
        T.DecodeRandomStridedWindow(n_consecutive_frames=6, **options),
    ):
        assert isinstance(transform, T.Transform)
        assert tuple(transform.fields) == ("video.mp4",) and not transform.is_batch_transform
