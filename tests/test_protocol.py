"""The paper's protocol: the last checkpoints of a run, also of one that went on from another, their mean and best."""

import json
import statistics
import subprocess

import hydra
import ocl.cli.eval  # noqa: F401  registers the config that evaluations are composed of
import pytest
import torch
from ocl.cli.train import train as train_config
from omegaconf import OmegaConf

from ocl_msf.cli import main
from ocl_msf.experiments import protocol
from ocl_msf.experiments.runs import Run

pytestmark = pytest.mark.needs_host

SCORES = {2: (0.1, 0.3), 4: (0.5, 0.4), 6: (0.2, 0.1)}  # ARI and ARI_fg by step


def make_run(folder, steps, experiment="msf/slate_clevrtex", stage=2, resumed=None):
    """The files of a run with checkpoints of these steps."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "overrides.yaml").write_text(json.dumps([f"+experiment={experiment}"]))
    config = {"load_checkpoint": resumed, "experiment": {"stage": stage}}
    OmegaConf.save(config, folder / "config" / "config.yaml")
    hydra_config = {"hydra": {"runtime": {"cwd": str(folder.parent)}}}
    OmegaConf.save(hydra_config, folder / "config" / "hydra.yaml")
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for step in steps:
        (checkpoints / f"epoch=0-step={step}.ckpt").touch()
    return folder


def test_the_last_checkpoints_are_those_of_the_highest_steps(tmp_path):
    run = Run.open(make_run(tmp_path / "run", range(100, 4000, 100)))
    assert list(protocol.last_checkpoints(run)) == list(range(1500, 4000, 100))
    assert [path.name for path in protocol.last_checkpoints(run, 2).values()] == [
        "epoch=0-step=3800.ckpt",
        "epoch=0-step=3900.ckpt",
    ]


def test_a_run_that_went_on_has_the_checkpoints_of_both_up_to_where_it_did(tmp_path):
    """The first run got further than the checkpoint that the second one took; paths are relative to the launch."""
    first = make_run(tmp_path / "first", [10, 20, 30])
    source = "first/lightning_logs/version_0/checkpoints/epoch=0-step=20.ckpt"
    second = make_run(tmp_path / "second", [30, 40], resumed=source)
    source = "second/lightning_logs/version_0/checkpoints/epoch=0-step=40.ckpt"
    third = make_run(tmp_path / "third", [45], resumed=source)
    found = protocol.last_checkpoints(Run.open(third))
    runs = {10: first, 20: first, 30: second, 40: second, 45: third}
    assert {step: path.parents[3] for step, path in found.items()} == runs
    assert list(protocol.last_checkpoints(Run.open(third), 2)) == [40, 45]
    (tmp_path / "second").rename(tmp_path / "away")
    assert list(protocol.last_checkpoints(Run.open(third))) == [45]


def test_evaluations_draw_nothing_and_keep_to_their_split(tmp_path):
    run = make_run(tmp_path / "run", [10])
    (task,) = protocol.scorings(Run.open(run), "test").values()
    words = task.command()
    assert words[1:4] == ["-m", "ocl.cli.eval", "+evaluation=msf/scores"]
    assert {"modules=null", "eval_val=false", "eval_test=true", "report_filename=step-10.json"} <= set(words)
    with hydra.initialize_config_module("configs", version_base="1.3"):
        config = hydra.compose("evaluation_config", overrides=words[3:])
    assert not config.modules and config.output_dir == str(run / "protocol" / "test")


FAKE = """
import json, os, pathlib, re, sys
chosen = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
step = re.search(r"step=(\\d+)", chosen["checkpoint_path"]).group(1)
if step == os.environ["FAILS"]:
    sys.exit(3)
ari, ari_fg = json.loads(os.environ["SCORES"])[step]
split = "test" if chosen.get("eval_test") == "true" else "val"
scores = {split: {"ari": ari, "ari_fg": ari_fg, "tokens": 7.0}}
path = pathlib.Path(chosen["output_dir"].strip("'"), chosen["report_filename"])
path.write_text(json.dumps({"checkpoint_path": chosen["checkpoint_path"], "metrics": scores}))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Evaluations that only write reports."""
    folder = tmp_path / "fake" / "ocl" / "cli"
    folder.mkdir(parents=True)
    for name, text in (("__init__", ""), ("../__init__", ""), ("eval", FAKE)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("SCORES", json.dumps(SCORES))
    monkeypatch.setenv("FAILS", "none")
    return make_run(tmp_path / "run", SCORES)


def test_best_last_and_mean_are_reported(fake, capsys):
    main(["protocol", str(fake)])
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in capsys.readouterr().out.splitlines()[-5:]}
    assert [title.strip() for title in rows[""][:-1]] == ["ari", "ari_fg"]
    assert [float(x) for x in rows["last"][:2]] == [20, 10]
    assert [float(x) for x in rows["best by ari+ari_fg on val, step 4"][:2]] == [50, 40]
    found = json.loads((fake / "protocol" / "val.json").read_text())
    for index, name in enumerate(("ari", "ari_fg")):
        column = [pair[index] for pair in SCORES.values()]
        assert found["mean"][name] == pytest.approx(statistics.mean(column))
        assert found["deviation"][name] == pytest.approx(statistics.stdev(column))
        assert f"{100 * statistics.mean(column):.2f} ± {100 * statistics.stdev(column):.2f}" in rows["mean of 3"][index]
    assert found["best_step"] == 4 and found["best"]["tokens"] == 7.0 and set(found["checkpoints"]) == {"2", "4", "6"}


def test_after_an_interruption_only_what_is_missing_is_scored(fake, monkeypatch, capsys):
    monkeypatch.setenv("FAILS", "4")
    with pytest.raises(SystemExit, match=r"(?s)step 4 ended with status 3.*Run the same command again"):
        main(["protocol", str(fake)])
    assert not (fake / "protocol" / "val.json").exists()
    monkeypatch.setenv("FAILS", "2")  # which has been scored
    main(["protocol", str(fake), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.startswith("finished: ocl_eval ") for line in lines] == [True, False, False]
    main(["protocol", str(fake), "--gpus", "2"])
    assert (fake / "protocol" / "val.json").exists()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is missing"))
    main(["protocol", str(fake)])


def test_the_best_on_test_is_the_best_on_validation(fake, monkeypatch, capsys):
    main(["protocol", str(fake), "--split", "test"])
    assert "best by ari+ari_fg on test, step 4" in capsys.readouterr().out
    main(["protocol", str(fake), "--by", "ari"])
    other = {step: (1 - ari, ari_fg) for step, (ari, ari_fg) in SCORES.items()}
    for path in (fake / "protocol" / "test").glob("*.json"):
        path.unlink()
    monkeypatch.setenv("SCORES", json.dumps(other))
    main(["protocol", str(fake), "--split", "test"])
    found = json.loads((fake / "protocol" / "test.json").read_text())
    assert (found["best_on"], found["best_step"], found["best"]["ari"]) == ("val", 4, 0.5)
    assert "best by ari+ari_fg on val, step 4" in capsys.readouterr().out


def test_scores_that_are_not_defined_are_null_and_have_no_part_in_means(fake, monkeypatch, capsys):
    """NaN is no JSON, but other programs write it."""
    scores = {step: list(pair) for step, pair in SCORES.items()}
    scores[4][0] = scores[6][1] = float("nan")
    monkeypatch.setenv("SCORES", json.dumps(scores))
    main(["protocol", str(fake)])
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines()[-5:]}
    assert [x.strip() for x in rows["last"]] == ["20.00", "-"]
    assert [x.strip() for x in rows["mean of 3"]] == ["15.00 ± 7.07", "35.00 ± 7.07"]
    assert "best by ari+ari_fg on val, step 2" in rows  # the only one that has both
    text = (fake / "protocol" / "val.json").read_text()
    found = json.loads(text)
    assert "NaN" not in text and found["last"]["ari_fg"] is None and found["checkpoints"]["4"]["ari"] is None
    assert found["mean"]["ari_fg"] == pytest.approx(0.35)
    assert Run.open(fake).protocol["mean"]["ari_fg"] == pytest.approx(0.35)

    for path in (fake / "protocol" / "val").glob("*.json"):
        path.unlink()
    monkeypatch.setenv("SCORES", json.dumps(dict.fromkeys(scores, [0.5, float("nan")])))
    main(["protocol", str(fake), "--by", "ari"])
    found = json.loads((fake / "protocol" / "val.json").read_text())
    assert found["mean"]["ari_fg"] is None and found["mean"]["ari"] == 0.5
    assert "ari_fg" not in Run.open(fake).protocol["mean"]
    with pytest.raises(SystemExit, match="no ari_fg; choose one of ari, tokens"):
        main(["protocol", str(fake), "--by", "ari_fg"])


def test_what_is_not_there_is_named(fake, tmp_path):
    empty = make_run(tmp_path / "empty", [])
    for arguments, message in [
        ([str(tmp_path)], "is no run"),
        ([str(empty)], "has no checkpoints"),
        ([str(fake), "--by", "miou"], "have no miou; choose one of ari, ari_fg"),
        ([str(fake), "--gpus", "all"], "gpus is a number"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main(["protocol", *arguments])


TINY = [
    "+experiment=msf/vqvae_clevrtex",
    "+msf/preset=cpu",
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:9,warmup_steps:0,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.image_size=32",
    "seed=0",
]


def test_training_keeps_the_last_checkpoints(shards, tmp_path, monkeypatch):
    """25 of them; here 3, and the one of the last step, which is no multiple of the interval."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    with hydra.initialize_config_module("configs", version_base="1.3"):
        config = hydra.compose("training_config", overrides=TINY)
        assert config.experiment.callbacks.checkpoint.save_top_k == 25
        config.experiment.callbacks.checkpoint.save_top_k = 3
        train_config(config)
    kept = sorted(path.name.split("step000000")[1] for path in tmp_path.glob("lightning_logs/version_0/checkpoints/*"))
    assert kept == ["4.ckpt", "6.ckpt", "8.ckpt", "9.ckpt"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_the_protocol_of_a_real_run(shards, run_program, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    assert run_program("ocl.cli.train", *TINY, cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "outputs" / "msf" / "vqvae_clevrtex").iterdir()
    main(["protocol", str(run), "--last", "2"])
    found = json.loads((run / "protocol" / "val.json").read_text())
    assert list(found["checkpoints"]) == ["8", "9"] and found["by"] == "inter"
    assert found["best"]["inter"] == max(scores["inter"] for scores in found["checkpoints"].values()) > 0
    assert not list(run.glob("protocol/**/*.png"))
    checkpoint = protocol.last_checkpoints(Run.open(run))[8]
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 8
