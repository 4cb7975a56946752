"""The demo's steps, without what they do: their order, what a second run skips, and the table at the end."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from ocl_msf import demo
from ocl_msf.cli import main

pytestmark = pytest.mark.needs_host


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Runs the demo with steps that only leave files, in tmp_path; gives back the titles of those that have run."""

    def imitate(words, steps):
        chosen = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
        if "train_config_path" in chosen:
            folder = Path(chosen["output_dir"].strip("'"))
            score = 0.5 if "untrained.ckpt" in chosen["checkpoint_path"] else 0.75
            rows = {"": score, "image_gain_": score / 2, "grid_": 0.625, "colour_": 0.25}
            scores = {f"{row}{name}": its for row, its in rows.items() for name in ("ari", "ari_fg", "miou", "mbo")}
            report = {"checkpoint_path": chosen["checkpoint_path"].strip("'"), "metrics": {"val": scores}}
            (folder / chosen["report_filename"]).write_text(json.dumps(report))
            (folder / "scenes.png").touch()
        elif "experiment" in chosen:
            parent = tmp_path / "outputs" / chosen["experiment"]
            folder = parent / str(len(list(parent.glob("*"))))
            (folder / "config").mkdir(parents=True)
            (folder / "config" / "config.yaml").write_text("experiment: {}\ntrainer: {max_steps: 1000}\n")
            version = folder / "lightning_logs" / "version_0"
            (version / "checkpoints").mkdir(parents=True)
            torch.save({"state_dict": {}}, version / "checkpoints" / f"epoch0000-step{steps:07}.ckpt")
            if "load_checkpoint" not in chosen:
                (version / "untrained.ckpt").touch()

    def run(steps=1000):
        ran = []

        def run_all(tasks, workers):
            assert workers == [["env", f"DATASET_PREFIX={tmp_path}/shards"]]
            for task in tasks:
                if task.done is None or not task.done():
                    ran.append((task.title, task.command()))
                    imitate(task.command()[3:], steps)
                    if task.done and not task.done():
                        sys.exit("failed")

        monkeypatch.setattr(demo, "run_all", run_all)
        main(["demo", "--folder", str(tmp_path)])
        return ran

    return run


BOX = "the model in the box"
STEPS = ["making scenes", "converting them", "training vqvae_clevrtex", "training slate_clevrtex"]


def test_the_steps_in_order_and_once(play, capsys):
    titles = [title for title, _ in play()]
    assert titles == [*STEPS, *(f"scoring {name}" for name in ("before training", "after training", BOX))]
    printed = capsys.readouterr().out
    gain = r" .*\n  of it image gain +"
    assert re.search(rf"before training +50\.0{gain}25\.0 .*\nafter training +75\.0{gain}37\.5 ", printed)
    assert re.search(r"blind grid +62\.5 .*\ncolour clustering +25\.0 ", printed)
    assert "\nafter training: ahead of both in every score\n" in printed
    assert [title for title, _ in play()] == STEPS[:2]  # these two see for themselves what is there


def test_training_goes_on_from_the_last_checkpoint(play):
    with pytest.raises(SystemExit):
        play(steps=400)
    ran = dict(play())
    assert ran["training vqvae_clevrtex"][-1].endswith("/epoch0000-step0000400.ckpt")
    assert not any("load_checkpoint" in word for word in ran["training slate_clevrtex"])
