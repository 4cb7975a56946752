"""The table runner: what it plans, what it recognises, what it prints."""

import json
import statistics
import sys

import pytest

from ocl_msf import tables
from ocl_msf.paper import TABLES

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
    (folder / "config" / "config.yaml").write_text("experiment: {}\ntrainer: {max_steps: 1000}\n")
    (folder / "config" / "overrides.yaml").write_text(json.dumps([*job.arguments, "load_checkpoint='x'"]))
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoints / f"epoch=0-step={step}.ckpt"
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
    variants = {path.stem for path in (tables.configs() / "msf" / "variant").glob("*.yaml")}
    assert {row.variant for part in parts for row in part.rows} - {None} <= variants
    best = [
        r for p in [*TABLES["table5"].values(), *TABLES["table6"].values()] for r in p.rows if r.values == (100.71,)
    ]
    assert [(row.variant, row.overrides) for row in best] == [("msf", ())] * 5


def test_runs_of_a_part(tmp_path):
    cells = tables.plan(TABLES["table5"]["upper-left"], "clevrtex", [0, 1], tmp_path, "cpu", ["a=1"])
    assert [(cell.row.variant, cell.seed) for cell in cells[:3]] == [("msf", 0), ("msf", 1), ("no_intra", 0)]
    assert len(cells) == 8 and len({job for cell in cells for job in cell.jobs}) == 16
    one, two = cells[2].jobs
    assert two.command[:3] == [sys.executable, "-m", "ocl.cli.train"]
    assert one.arguments[:5] == [
        "+experiment=msf/vqvae_clevrtex",
        "msf/variant=no_intra",
        "+msf/preset=cpu",
        "seed=0",
        "a=1",
    ]
    assert one.root == two.root and two.arguments[0] == "+experiment=msf/slate_clevrtex"
    assert "+evaluation=msf/slate_clevrtex" in cells[2].scoring.command


def test_guidance_of_any_scale_shares_its_stage_one(tmp_path):
    cells = tables.plan(TABLES["table5"]["lower-right"], "clevrtex", [0], tmp_path)
    assert len({cell.jobs[0] for cell in cells}) == 1
    assert len({cell.jobs[1] for cell in cells}) == 3


def test_what_has_no_experiment_is_not_planned(tmp_path):
    assert tables.plan(TABLES["table4"]["c256"], "nowhere", [0], tmp_path) == []
    assert all(cell.row.label != "+SysBind@2" for cell in tables.plan(TABLES["table1"][""], "clevrtex", [0], tmp_path))


def test_a_finished_run_is_recognised_by_its_command_and_its_report(tmp_path):
    (cell, other) = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path)
    (job,) = cell.jobs
    assert job.run is None and cell.scoring.scores is None
    finish(job, 500)
    assert not job.run.finished and job.command[-1].endswith("step=500.ckpt'")
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
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_distances_are_no_percentages():
    assert tables.value_of("inter", {"inter": 0.5}) == 0.5
    assert tables.mean_and_spread([0.5]) == "0.500"


def test_the_estimate_counts_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_PREFIX", str(tmp_path))
    cells = tables.plan(TABLES["table4"]["c256"], "clevrtex", [0], tmp_path, "cpu")
    jobs = [cell.jobs[0] for cell in cells]
    assert tables.estimate(jobs).startswith("2 of 2 runs to train, 2,400 steps; 2,400 steps at a speed that no")
    finish(jobs[0], 500)
    assert "1,900 steps" in tables.estimate(jobs)
    finish(jobs[0], 1200)
    assert tables.estimate(jobs).startswith("1 of 2 runs to train, 1,200 steps")
    assert "speed that no" not in tables.estimate(jobs)


@pytest.mark.parametrize(
    "arguments, message",
    [(["table5", "--part", "middle"], "upper-left"), (["table2"], "no rows of clevrtex"), (["table9"], "table8")],
)
def test_what_is_not_there_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        tables.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_table_four_from_nothing(tmp_path, shards, monkeypatch, capfd):
    monkeypatch.setenv("DATASET_PREFIX", str(shards))
    command = ["table4", "--part", "c256", "--seeds", "0", "--preset", "cpu", "--out", str(tmp_path), "--set", *TINY]
    tables.main([*command, "--dry-run"])
    assert "2 of 2 runs to train, 4 steps" in capfd.readouterr().out
    tables.main(command)
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if line.startswith("| ")][-2:]
    assert [row[0] for row in rows] == ["| VQ-VAE", "| +MSF"]
    assert all(float(row[1]) >= 0 and float(row[3]) >= 0 and row[5] == "1 |" for row in rows)
    monkeypatch.setattr(tables.subprocess, "call", lambda command: pytest.fail("nothing is missing"))
    tables.main(command)
