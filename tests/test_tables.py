"""The table runner: what it plans, what it recognises, what it prints."""

import json
import os
import runpy
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from ocl_msf.cli import main
from ocl_msf.experiments import jobs, paper, tables
from ocl_msf.experiments.paper import TABLES

pytestmark = pytest.mark.needs_host

TINY = [
    "dataset.batch_size=4",
    "dataset.eval_batch_size=4",
    "dataset.num_workers=0",
    "experiment.pretraining={steps:2,warmup_steps:1,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.image_size=32",
]


def finish(job, step, scoring=None, scores=None):
    """Leave behind what a run of the job does that got as far as `step` of 1000."""
    folder = job.root / "msf" / job.experiment / "now"
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "config.yaml").write_text("experiment: {}\ntrainer: {max_steps: 1000}\nload_checkpoint: /x\n")
    (folder / "config" / "overrides.yaml").write_text(json.dumps([*job.arguments, "load_checkpoint='/x'"]))
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoints / f"epoch0000-step{step:07}.ckpt"
    checkpoint.touch()
    if scoring:
        report = {"checkpoint_path": str(checkpoint), "metrics": {"val": scores}}
        (folder / scoring.report).write_text(json.dumps(report))


def test_the_paper_s_numbers_are_complete():
    """As many as the paper has, and one for each metric; ablations share the run that they all compare with."""
    counts = {name: sum(len(part.rows) for part in parts.values()) for name, parts in TABLES.items()}
    assert counts == dict(table1=12, table2=12, table3=12, table4=18, table5=12, table6=3, table7=2, table8=5)
    parts = [part for table in TABLES.values() for part in table.values()]
    assert all(len(row.values) == len(part.metrics) for part in parts for row in part.rows)
    variants = {path.stem for path in (Path(__file__).parents[1] / "configs" / "msf" / "variant").glob("*.yaml")}
    assert {row.variant for part in parts for row in part.rows} - {None} <= variants
    best = [
        r for p in [*TABLES["table5"].values(), *TABLES["table6"].values()] for r in p.rows if r.values == (100.71,)
    ]
    assert [(row.variant, row.overrides) for row in best] == [("msf", ("experiment.encoder.vit=null",))] * 5


def test_runs_of_a_part(tmp_path):
    part = TABLES["table5"]["upper-left"]
    cells = tables.plan(part, "clevrtex", [0, 1], tmp_path, "cpu", ["training_vis_frequency=9"])
    assert [(cell.row.variant, cell.seed) for cell in cells[:3]] == [("msf", 0), ("msf", 1), ("no_intra", 0)]
    assert len(cells) == 8 and len({job for cell in cells for job in cell.jobs}) == 16
    one, two = cells[2].jobs
    assert two.command[:3] == [sys.executable, "-m", "ocl.cli.train"]
    assert one.arguments[:5] == [
        "+experiment=msf/vqvae_clevrtex",
        "msf/variant=no_intra",
        "+msf/preset=cpu",
        "seed=0",
        "training_vis_frequency=9",
    ]
    assert one.root == two.root and two.arguments[0] == "+experiment=msf/slate_clevrtex"
    assert "+evaluation=msf/scores" in cells[2].scoring.command and cells[2].scoring.report == "metrics.json"


def test_guidance_of_any_scale_shares_its_stage_one(tmp_path):
    cells = tables.plan(TABLES["table5"]["lower-right"], "clevrtex", [0], tmp_path)
    assert len({cell.jobs[0] for cell in cells}) == 1
    assert len({cell.jobs[1] for cell in cells}) == 3


def test_rows_that_differ_in_what_the_preset_sets_share_their_runs(tmp_path):
    """Table 5 takes the small CNN, and so does the preset: its runs are then those of Table 1."""
    for preset in ("", "cpu"):
        *_, first = tables.plan(TABLES["table1"][""], "clevrtex", [0], tmp_path, preset)
        fifth = tables.plan(TABLES["table5"]["upper-left"], "clevrtex", [0], tmp_path, preset)[0]
        assert first.jobs[0] == fifth.jobs[0]
        assert (first.jobs[1] == fifth.jobs[1]) == (preset == "cpu")
        assert ("experiment.encoder.vit=null" in fifth.jobs[1].arguments) == (preset == "")


def test_competitors_have_experiments_of_their_own(tmp_path):
    """SysBinder stands on the plain VQ-VAE that SLATE_r has trained, DINOSAUR on none."""
    cells = {cell.row.label: cell for cell in tables.plan(TABLES["table1"][""], "clevrtex", [0], tmp_path)}
    assert list(cells) == ["SLATE_r", "+SysBind@2", "+GDR@g2", "+MSF"]
    assert cells["+SysBind@2"].jobs[0] == cells["SLATE_r"].jobs[0]
    assert "msf/variant=vq" in cells["+SysBind@2"].jobs[1].arguments
    (dinosaur,) = [c for c in tables.plan(TABLES["table3"][""], "clevrtex", [0], tmp_path) if c.row.label == "DINOSAUR"]
    (job,) = dinosaur.jobs
    assert job.arguments[:2] == ["+experiment=msf/dinosaur_clevrtex", "seed=0"] and job.root.parent.name == "dinosaur"


def test_what_has_no_experiment_is_said_to_be_missing(tmp_path, monkeypatch, capsys):
    assert tables.plan(TABLES["table4"]["c256"], "nowhere", [0], tmp_path) == []
    assert {"vqvae_voc", "slate_voc", "sysbinder_voc"} <= tables.known_experiments()
    monkeypatch.setattr(tables, "known_experiments", lambda: {"vqvae_voc", "slate_voc"})
    cells = tables.plan(TABLES["table1"][""], "voc", [0], tmp_path)
    assert [cell.row.label for cell in cells] == ["SLATE_r", "+GDR@g2", "+MSF"]
    monkeypatch.setattr(tables, "estimate", lambda *_: "")
    main(["tables", "table1", "--dataset", "voc", "--out", str(tmp_path), "--dry-run"])
    assert "+SysBind@2 is left out: there is no sysbinder_voc yet." in capsys.readouterr().out


def test_a_finished_run_is_recognised_by_its_command_and_its_report(tmp_path):
    (cell, other) = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path)
    (job,) = cell.jobs
    assert job.run is None and cell.scoring.scores is None
    finish(job, 500)
    assert not job.run.finished and job.command[-1].endswith("/epoch0000-step0000500.ckpt")
    finish(job, 1000, cell.scoring, {"inter": 1.0, "intra": 0.5})
    assert job.run.finished and cell.scoring.scores == {"inter": 1.0, "intra": 0.5}
    assert str(job.run.checkpoint) in cell.scoring.command[-1]
    (again, _) = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path, settings=["a=1"])
    assert again.jobs[0].root == job.root and again.jobs[0].run is None
    assert other.jobs[0].run is None


def test_scores_of_another_checkpoint_do_not_count(tmp_path):
    cell = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path)[0]
    finish(cell.jobs[0], 500, cell.scoring, {"inter": 1.0, "intra": 0.5})
    finish(cell.jobs[0], 1000)
    assert cell.jobs[0].run.finished and cell.scoring.scores is None


def test_a_table_has_means_and_spreads_beside_the_paper(tmp_path):
    part = TABLES["table5"]["upper-left"]
    cells = tables.plan(part, "clevrtex", [0, 1, 2], tmp_path)
    sums = [0.9, 0.8, 0.85]
    for cell, value in zip(cells, sums):
        finish(cell.jobs[1], 1000, cell.scoring, {"ari": value - 0.5, "ari_fg": 0.5})
    lines = tables.markdown(part, "clevrtex", cells).splitlines()
    spread = 100 * statistics.stdev(sums)
    assert f"| inter-scale and intra-scale | 85.00 ± {spread:.2f} | 100.71 | 3 |" in lines
    assert "| neither | - | 91.03 | 0 |" in lines
    assert not [line for line in lines if "image gain" in line or "grid" in line]
    rows = {"image_gain_ari": 0.125, "image_gain_ari_fg": 0.25, "grid_ari": 0.0625, "grid_ari_fg": 0.5}
    finish(cells[0].jobs[1], 1000, cells[0].scoring, {"ari": 0.4, "ari_fg": 0.5, **rows})
    lines = tables.markdown(part, "clevrtex", cells).splitlines()
    assert lines[-1] == "| blind grid | 56.25 |  |  |"
    assert lines[[line.startswith("| inter-scale and intra-scale |") for line in lines].index(True) + 1] == (
        "| of it image gain | 37.50 |  |  |"
    )
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_a_score_that_is_not_defined_has_no_part_in_the_mean(tmp_path):
    part = TABLES["table7"][""]
    cells = tables.plan(part, "coco", [0, 1], tmp_path)
    sizes = {"miou_medium": 0.5, "miou_large": 0.5, "miou": 0.5}
    finish(cells[0].jobs[1], 1000, cells[0].scoring, {"miou_small": None, **sizes})
    finish(cells[1].jobs[1], 1000, cells[1].scoring, {"miou_small": 0.25, **sizes})
    (line,) = [line for line in tables.markdown(part, "coco", cells).splitlines() if line.startswith("| SLATE |")]
    assert line.startswith("| SLATE | 25.00 | 8.57 | 50.00 ± 0.00 |")
    finish(cells[1].jobs[1], 1000, cells[1].scoring, dict.fromkeys(["miou_small", *sizes]))
    assert cells[1].scoring.scores == {}  # it has been scored


def test_distances_are_no_percentages():
    assert paper.value_of("inter", {"inter": 0.5}) == 0.5
    assert paper.format_scores("inter", [{"inter": 0.5}]) == "0.500"
    assert paper.format_scores("ari", [{"ari": 0.5}, {"ari": 0.7}, {}]) == f"60.00 ± {20 / 2**0.5:.2f}"
    assert paper.format_scores("ari+ari_fg", [{"ari": 0.5}]) == "-"


def test_the_estimate_counts_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", str(tmp_path))
    cells = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path, "cpu")
    jobs = [cell.jobs[0] for cell in cells]
    assert tables.estimate(jobs).startswith("2 of 2 runs to train, 2,400 steps; 2,400 steps of unknown speed")
    finish(jobs[0], 500)
    assert "1,900 steps" in tables.estimate(jobs)
    finish(jobs[0], 1200)
    assert tables.estimate(jobs).startswith("1 of 2 runs to train, 1,200 steps")
    assert "unknown speed" not in tables.estimate(jobs)


@pytest.mark.parametrize(
    "arguments, message",
    [(["table5", "--part", "middle"], "upper-left"), (["table2"], "no rows of clevrtex"), (["table9"], "table8")],
)
def test_what_is_not_there_is_named(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["tables", *arguments])


def test_the_speed_of_a_run_that_went_on_is_that_of_its_own_steps(tmp_path):
    job = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path)[0].jobs[0]
    finish(job, 1000)
    config = job.run.folder / "config" / "config.yaml"
    config.write_text(config.read_text().replace("/x", "/a/epoch=0-step=600.ckpt"))
    os.utime(job.run.folder / "config" / "overrides.yaml", (1000, 1000))
    os.utime(job.run.checkpoint, (1100, 1100))
    assert tables.seconds_per_step(job.run) == pytest.approx(100 / 400)


def test_a_run_is_recognised_where_it_has_been_moved_to(tmp_path):
    part = TABLES["table4"]["c256"]
    finish(tables.plan(part, "clevrtex", [0], tmp_path / "old")[0].jobs[0], 1000)
    (tmp_path / "old").rename(tmp_path / "new")
    assert tables.plan(part, "clevrtex", [0], tmp_path / "new")[0].jobs[0].run.finished


def test_a_run_is_recognised_however_its_numbers_are_written(tmp_path):
    """Hydra's launchers write 0.001 for 1e-3."""
    part, where = TABLES["table4"]["c256"], tmp_path / "out"
    settings = [["a=1e-3", "b={c:1e-3,d:[1,x]}"], ["a=0.001", "b={c:0.001,d:[1,x]}"], ["a=0.002", "b={c:1e-3,d:[1,x]}"]]
    first, same, other = (tables.plan(part, "clevrtex", [0], where, settings=chosen)[0].jobs[0] for chosen in settings)
    finish(first, 1000)
    assert same.run is not None and other.run is None


FAKE = """
import json, os, pathlib, signal, sys
words = sys.argv[1:]
chosen = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([words, os.environ.get("CUDA_VISIBLE_DEVICES")]) + chr(10))
if "experiment" in chosen:
    parent = pathlib.Path(chosen["experiment.root_output_folder"].strip("'"), chosen["experiment"])
    folder = parent / str(len(list(parent.glob("*"))))
    (folder / "config").mkdir(parents=True)
    kept = [word for word in words if not word.startswith(("--", "hydra"))]
    (folder / "config" / "overrides.yaml").write_text(json.dumps(kept))
    (folder / "config" / "config.yaml").write_text("experiment: {}\\ntrainer: {max_steps: 1000}\\n")
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    fails = os.environ["FAILS"] in " ".join(words) and "load_checkpoint" not in chosen
    (checkpoints / f"epoch0000-step{400 if fails else 1000:07}.ckpt").touch()
    print("[now][ocl_msf.training.progress][INFO] - half way")
    print("a word of no interest")
    sys.exit(3 if fails else 0)
run = pathlib.Path(chosen["train_config_path"].strip("'")).parent.parent
scores = dict(ari=0.5, ari_fg=0.25, miou=0.5, mbo=0.5)
report = {"checkpoint_path": chosen["checkpoint_path"].strip("'"), "metrics": {"val": scores}}
(run / "metrics.json").write_text(json.dumps(report))
"""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Plays table 5 upper left with commands that do nothing; gives back the status, what it printed, the calls."""
    for module in ("train", "eval"):
        path = tmp_path / "fake" / "ocl" / "cli" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE)
        for package in (path.parent, path.parent.parent):
            (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setattr(tables, "estimate", lambda *_: "")

    def play(capsys, *arguments, fails="nothing"):
        monkeypatch.setenv("FAILS", fails)
        (tmp_path / "calls").write_text("")
        message = ""
        try:
            part = ["table5", "--part", "upper-left", "--seeds", "0", "--out", str(tmp_path / "out")]
            main(["tables", *part, *arguments])
        except SystemExit as error:
            message = str(error)
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return message, capsys.readouterr().out, calls

    return play


def test_a_table_is_run_and_after_a_failure_goes_on_from_the_checkpoint(runner, capsys):
    message, printed, calls = runner(capsys, fails="slate_clevrtex msf/variant=no_inter")
    assert "status 3" in message and "Run the same command again" in message and "a word of no interest" in message
    assert [words[0] for words, _ in calls].count("+evaluation=msf/scores") == 2
    assert "half way" in printed and "a word of no interest" not in printed

    message, printed, calls = runner(capsys, fails="slate_clevrtex msf/variant=no_inter")
    assert message == ""
    assert calls[0][0][1] == "msf/variant=no_inter" and calls[0][0][-1].endswith("/epoch0000-step0000400.ckpt")
    assert [words[0].split("=")[1] for words, _ in calls] == [
        *("msf/slate_clevrtex", "msf/scores"),
        *("msf/vqvae_clevrtex", "msf/slate_clevrtex", "msf/scores"),
    ]
    assert printed.count("| 75.00 | ") == 4
    assert runner(capsys)[2] == []  # nothing is missing


def test_several_gpus_run_side_by_side_and_stages_in_order(runner, capsys):
    message, _, calls = runner(capsys, "--gpus", "3,5")
    assert message == "" and len(calls) == 12
    assert {device for _, device in calls} == {"3", "5"}
    order = [(words[0].split("=")[1], words[1]) for words, _ in calls if words[0].startswith("+experiment")]
    for variant in ("msf/variant=no_inter", "msf/variant=no_intra"):
        mine = [experiment for experiment, chosen in order if chosen == variant]
        assert mine == ["msf/vqvae_clevrtex", "msf/slate_clevrtex"]


def test_through_slurm_every_command_is_a_job_of_one_gpu(runner, capsys):
    message, printed, calls = runner(capsys, "--slurm", "hydra.launcher.partition=fast")
    assert message == "" and len(calls) == 12
    for words, _ in calls:
        assert {"hydra/launcher=submitit_slurm", "hydra.launcher.gres=gpu:1"} < set(words)
        assert words[-2:] == ["hydra.launcher.partition=fast", "--multirun"]  # Hydra takes no override behind a flag
    assert printed.count("| 75.00 | ") == 4


def test_guidances_of_one_variant_wait_for_each_other(tmp_path):
    tasks = tables.tasks_of(tables.plan(TABLES["table5"]["lower-right"], "clevrtex", [0], tmp_path))
    first, slate, _, both, _, second, _ = tasks
    assert both.needs == [first, slate] and second.needs == [first, slate, both]


def test_a_dry_run_prints_commands_to_paste(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "estimate", lambda *_: "")
    place = tmp_path / "a place"
    main(["tables", "table6", "--seeds", "0", "--out", str(place), "--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ocl_")]
    cells = tables.plan(TABLES["table6"][""], "clevrtex", [0], place)
    jobs = [cell.jobs for cell in cells]
    assert [shlex.split(line) for line in lines[:2]] == [["ocl_train", *job.arguments] for job in jobs[0]]
    assert shlex.split(lines[2])[:2] == ["ocl_eval", "+evaluation=msf/scores"] and len(lines) == 9
    assert not place.exists()


def test_a_dry_run_searches_a_folder_once_and_composes_an_experiment_once(tmp_path, monkeypatch, capsys):
    """However many seeds and variants there are; rows that set something else are composed as well."""
    searched, composed = [], []
    find, compose = jobs.find_runs, tables.hydra.compose
    monkeypatch.setattr(jobs, "find_runs", lambda folder: searched.append(folder) or find(folder))
    monkeypatch.setattr(tables.hydra, "compose", lambda *x, **y: composed.append(y["overrides"]) or compose(*x, **y))
    tables._composed.cache_clear()
    finish(tables.plan(TABLES["table6"][""], "clevrtex", [0], tmp_path)[0].jobs[0], 1000)
    composed.clear()
    main(["tables", "table6", "--seeds", "0", "1", "2", "--out", str(tmp_path), "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.startswith("18 of 18 runs") and printed.count("finished: ocl_train") == 1
    assert len(searched) == len(set(searched)) == 18
    small = "experiment.encoder.vit=null"
    assert composed == [["+experiment=msf/vqvae_clevrtex"], ["+experiment=msf/slate_clevrtex", small]]


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs" / "msf" / "variant").glob("*.yaml")))
def test_variants_do_not_say_how_long_is_trained(path):
    """So that `steps_of` and the overrides of rows need no composition for each."""
    text = path.read_text()
    assert not [name for name in ("trainer", "steps", "optimization", "encoder", "guidance") if f"{name}:" in text]


def test_slurm_needs_no_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "estimate", lambda *_: "")
    main(["tables", "table6", "--seeds", "0", "--out", str(tmp_path), "--dry-run", "--slurm"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ocl_")]
    assert lines and all("hydra/launcher=submitit_slurm" in line for line in lines)


def test_planning_needs_neither_pytorch_nor_lightning():
    code = "import sys, ocl_msf.experiments.tables; print({'torch', 'pytorch_lightning'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_reader_may_leave(tmp_path):
    command = f"{sys.executable} -m ocl_msf tables table6 --seeds 0 --dry-run --out {tmp_path} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("6 of 6 runs")


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_table_four_from_nothing(tmp_path, shards, monkeypatch, capfd):
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    command = ["table4", "--part", "c256", "--seeds", "0", "--preset", "cpu", "--out", str(tmp_path), "--set", *TINY]
    main(["tables", *command, "--dry-run"])
    assert "2 of 2 runs to train, 4 steps" in capfd.readouterr().out
    main(["tables", *command])
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if line.startswith("| ")][-2:]
    assert [row[0] for row in rows] == ["| VQ-VAE", "| +MSF"]
    assert all(float(row[1]) >= 0 and float(row[3]) >= 0 and row[5] == "1 |" for row in rows)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is missing"))
    main(["tables", *command])


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_table_seven_from_a_miniature_of_coco(tmp_path, monkeypatch, capfd):
    """Both stages of both rows, on 4 images, and mIoU of small, medium, large and all things of 3."""
    raw = runpy.run_path(str(Path(__file__).with_name("raw_coco.py")))
    raw["write_folder"](tmp_path / "raw")
    main(["convert", "coco", str(tmp_path / "raw"), str(tmp_path), "--workers", "1"])
    monkeypatch.setenv("DATASET_PREFIX", str(tmp_path))
    settings = [*TINY, "dataset.batch_size=2", "experiment.slots={number:3,dim:8}", "experiment.encoder.dim=4"]
    settings += ["experiment.training={steps:2,warmup_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}"]
    settings += ["experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}"]
    command = ["table7", "--dataset", "coco", "--seeds", "0", "--preset", "cpu", "--out", str(tmp_path / "out")]
    main(["tables", *command, "--set", *settings])
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if line.startswith("| ")][-6:]
    gain, trivial = "| of it image gain", ["| blind grid", "| colour clustering"]
    assert [row[0] for row in rows] == ["| SLATE", gain, "| +MSF", gain, *trivial]
    assert all(row[7] != "-" for row in rows)
    for row in rows[0], rows[2]:
        assert 0 < float(row[1]) <= 100 and row[7] == row[1]  # all things are small
        assert row[3] == row[5] == "-"  # medium and large: undefined
        assert row[9] == "1 |"
