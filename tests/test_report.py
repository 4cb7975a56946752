"""The report: what it finds, what it prints, and that it is the same twice."""

import importlib.metadata
import io
import json
import re
import statistics
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ocl_msf.cli import main
from ocl_msf.experiments.logs import Event
from ocl_msf.results.figures.curves import draw_curves
from ocl_msf.results.figures.segmentations import Scenes
from ocl_msf.results.report import plots
from ocl_msf.results.report.comparison import paper_value
from ocl_msf.results.rows import collect, name_rows

pytestmark = pytest.mark.needs_host

VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Notes what is open, tables, pictures, and every address that a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.alternatives, self.names, self.text = [], [], [], set(), ""
        self.headings, self.rows = [], []

    def handle_starttag(self, tag, attributes):
        self.open += [tag] if tag not in VOID else []
        attributes = dict(attributes)
        self.names |= {attributes.get("id")}
        self.addresses += [attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes]
        if tag == "img":
            self.alternatives.append(attributes["alt"])
        if re.match(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += f" {data}" if self.open[-1] == "small" else data


def read(folder):
    checker = Checker()
    checker.feed((folder / "index.html").read_text(encoding="utf-8"))
    return checker


def make_run(folder, overrides, scores, report="metrics.json", step=1000):
    (folder / "config").mkdir(parents=True)
    stage = 1 if report == "separability.json" else 2
    text = f"experiment: {{note: a<b, variant: msf, stage: {stage}}}\ntrainer: {{max_steps: 1000}}\n"
    (folder / "config" / "config.yaml").write_text(text)
    (folder / "config" / "overrides.yaml").write_text(json.dumps(overrides))
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / f"epoch=0-step={step}.ckpt").touch()
    if scores:
        (folder / report).write_text(json.dumps({"metrics": {"val": scores}}))
    return folder


def make_scenes(folder, scores):
    """Scenes with the given ARI_fg, whose first pixel tells their place in that list."""
    names = [f"{n:06}" for n in range(len(scores))]
    images = np.zeros((len(scores), 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(scores))
    segments = np.ones((len(scores), 8, 8), np.uint8)
    arrays = Scenes(np.array(names), np.array(scores), np.array(names), images, segments, segments)
    np.savez(folder / "scenes.npz", **arrays._asdict())


SLATE = ["+experiment=msf/slate_clevrtex"]
FOUND = [0.5, -0.125, 0.75, 0.25, 0.875, 0.0, 0.625]


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "outputs"
    for seed, ari in enumerate((0.25, 0.35, 0.5)):
        scores = {"ari": ari, "ari_fg": 0.5, "miou": 0.125, "mbo": 0.25}
        place = f"+experiment.root_output_folder='{tmp_path}/s{seed}'"
        run = make_run(folder / f"s{seed}" / "slate" / "now", [*SLATE, f"seed={seed}", place], scores)
    make_scenes(folder / "s0" / "slate" / "now", FOUND)
    make_run(folder / "vq" / "now", [*SLATE, "msf/variant=vq", "seed=0"], None, step=10)
    make_run(
        folder / "vae" / "now",
        ["+experiment=msf/vqvae_clevrtex", "seed=0"],
        {"inter": 3.5, "intra": 0.25},
        "separability.json",
    )
    return run.parents[2]


def test_scores_are_means_over_seeds_beside_the_paper(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    lines = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("| msf (+MSF) | 3 |")]
    spread = statistics.stdev([25, 35, 50])
    assert f"36.67 ± {spread:.2f} (paper 32.70, Table 1)" in row
    assert f"86.67 ± {spread:.2f} (paper 100.71, Table 5)" in row
    assert "50.00 ± 0.00 (paper 80.70, Table 1)" in row
    assert "| msf (+MSF) | 1 | 3.500 (paper 0.786, Table 4) | 0.250 (paper 0.038, Table 4) |" in lines
    assert [line for line in lines if line.startswith("| vq (SLATE_r) | 0 (of 1) | - (paper 20.56, Table 1)")]
    assert "| msf | 2 | 50.00 | 50.00 | 12.50 | 25.00 | 100.00 | 1000 of 1000 | - |" in lines
    assert "| vq | 0 | - | - | - | - | - | 10 of 1000 | - |" in lines


def test_the_page_has_the_numbers_of_the_table(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    lines = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8").splitlines()
    rows = [[text.strip() for text in line.strip("| ").split(" | ")] for line in lines if line.startswith("| msf ")]
    shown = [[text.strip() for text in row] for row in read(tmp_path / "report").rows]
    assert len(rows) == 6
    for row in rows:
        assert [re.sub(r" \((.*)\)$", r" \1", text) for text in row] in shown


def test_the_page_is_whole_and_needs_no_network(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    page, checker = (tmp_path / "report" / "index.html").read_text(encoding="utf-8"), read(tmp_path / "report")
    assert checker.open == []
    inside = [address[1:] for address in checker.addresses if address.startswith("#")]
    pictures = [address for address in checker.addresses if not address.startswith("#")]
    assert inside and set(inside) <= checker.names
    assert pictures and all(address.startswith("data:image/png;base64,") for address in pictures)
    assert not re.search(r"https?:|@import|url\(|<script|<link", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_the_page_can_be_heard(runs, tmp_path):
    """Every picture says what it shows, and headings nest."""
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    checker = read(tmp_path / "report")
    assert checker.alternatives and all(len(text) > 20 for text in checker.alternatives)
    assert checker.headings.count(1) == 1 and checker.headings[0] == 1
    assert all(b - a <= 1 for a, b in zip(checker.headings, checker.headings[1:]))


def test_the_gallery_goes_from_the_best_to_the_worst(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "report"), "--scenes", "2"])
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    gallery = re.findall(
        r'src="data:image/png;base64,([^"]*)" alt="Input, true[^"]*scene (\d+), place (\d+) of 7', page
    )
    ranking = sorted(range(7), key=lambda n: -FOUND[n])
    places = [0, 1, 2, 3, 5, 6]
    assert [(int(name), int(place) - 1) for _, name, place in gallery] == [(ranking[p], p) for p in places]
    for data, name, _ in gallery:  # the picture is of the scene that it says
        assert np.array(Image.open(io.BytesIO(b64decode(data))))[0, 0, 0] == int(name)
    scores = re.findall(r"<b>ARI_fg ([-\d.]+)</b> scene", page)
    assert scores == [f"{100 * FOUND[ranking[p]]:.1f}" for p in places]
    main(["report", str(runs), "--out", str(tmp_path / "all"), "--scenes", "3"])
    assert len(re.findall("<b>ARI_fg", (tmp_path / "all" / "index.html").read_text(encoding="utf-8"))) == 7


def test_the_page_has_every_figure(runs, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    folder = runs / "vae" / "now"
    np.savez(folder / "guidance.npz", **{f"a/{kind}/0": np.zeros((4, 4, 3), np.uint8) for kind in ("input", "X")})
    with SummaryWriter(str(folder / "lightning_logs" / "version_0")) as writer:
        for step in range(3):
            writer.add_scalar("codebooks/codebook.perplexity", step + 1, step)
            writer.add_scalar("train/reconstruction", 1 / (step + 1), step)
    for name in "ab":
        main(["report", str(runs), "--out", str(tmp_path / name), "--date", "2025-01-01"])
    titles = [text.split(".")[0] for text in read(tmp_path / "a").alternatives]
    assert titles[:5] == [
        "Segmentations, slate_clevrtex",
        "Scores of scenes, slate_clevrtex",
        "Training curves, vqvae_clevrtex",
        "Use of codebooks, vqvae_clevrtex",
        "Guidance maps of scene a, vqvae_clevrtex",
    ]
    pages = [(tmp_path / name / "index.html").read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_scenes_of_another_checkpoint_are_noticed(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "a")])
    assert "two checkpoints" in read(tmp_path / "a").text
    make_scenes(runs / "s0" / "slate" / "now", [0.25, 0.75])  # their mean is the score
    main(["report", str(runs), "--out", str(tmp_path / "b")])
    assert "two checkpoints" not in read(tmp_path / "b").text


def test_what_is_missing_is_said(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    text = read(tmp_path / "report").text
    assert "slate_clevrtex, vq, seed 0: training is at step 10 of 1000." in text
    assert "slate_clevrtex, vq, seed 0: no metrics.json." in text
    assert "slate_clevrtex, msf, seed 1: no scenes.npz." in text and "msf, seed 0: no scenes.npz" not in text


def test_what_scores_are_worth_stands_beside_them(runs, tmp_path):
    """Image gain and its share, the verdict, and the trivial rows; a run without them is named."""
    main(["report", str(runs), "--out", str(tmp_path / "old")])
    old = read(tmp_path / "old").text
    assert "msf, seed 0: metrics.json has no image gain and no trivial rows. Evaluate again." in old
    assert "what scores are worth" not in old
    scores = {"ari": 0.5, "ari_fg": 0.5, "image_gain_ari": 0.3, "image_gain_ari_fg": 0.1, "slot_gain": 1.25}
    scores.update({"grid_ari": 0.1, "grid_ari_fg": 0.6, "colour_ari": 0.2, "colour_ari_fg": 0.2})
    for seed in ("s0", "s1", "s2"):
        (runs / seed / "slate" / "now" / "metrics.json").write_text(json.dumps({"metrics": {"val": scores}}))
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    lines = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8").splitlines()
    row = (
        "| msf (not ahead of blind grid in ARI_fg) | 50.00 (image gain 30.00, 60 %) | 50.00 (image gain 10.00, 20 %) |"
    )
    assert f"{row} 1.25 |" in lines
    assert "| blind grid | 10.00 | 60.00 |  |" in lines and "| colour clustering | 20.00 | 20.00 |  |" in lines
    shown = [[text.strip() for text in row] for row in read(tmp_path / "report").rows]
    assert ["blind grid", "10.00", "60.00", ""] in shown
    assert "no trivial rows" not in read(tmp_path / "report").text


def test_names_are_no_html(tmp_path):
    run = make_run(tmp_path / "runs" / "now", [*SLATE, "+note=<img src=x>&amp;", "seed='\"<b>'"], {"ari": 0.5})
    make_scenes(run, [0.5, 0.25])
    main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    checker = read(tmp_path / "report")
    assert checker.open == [] and "x" not in checker.addresses
    assert "+note=<img src=x>&amp;" in checker.text and "note: a<b" in checker.text


def test_every_row_has_its_commands(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    text = read(tmp_path / "report").text
    for line in [
        "ocl_train +experiment=msf/slate_clevrtex seed=2 +experiment.root_output_folder=s2",
        "ocl_eval +evaluation=msf/scores train_config_path=outputs/s2/slate/now/config/config.yaml",
        "ocl_eval +evaluation=msf/scores train_config_path=outputs/vae/now/config/config.yaml",
    ]:
        assert line in text.splitlines()
    assert str(tmp_path) not in text


def test_the_same_runs_make_the_same_bytes_but_for_the_date(runs, tmp_path):
    for name, date in [("a", "2025-01-01"), ("b", "2025-01-01"), ("c", "2025-01-02")]:
        main(["report", str(runs), "--out", str(tmp_path / name), "--date", date])
    first, second, third = ((tmp_path / name / "index.html").read_bytes() for name in "abc")
    assert first == second != third
    assert third.replace(b"2025-01-02", b"2025-01-01") == first
    assert (tmp_path / "a" / "scores.md").read_bytes() == (tmp_path / "c" / "scores.md").read_bytes()


def test_environments_are_shown_once_and_by_run(runs, tmp_path):
    kept = {"device": "1 x <GPU>", "torch": "9.8.7", "Python": "3.99"}
    folders = [runs / f"s{seed}" / "slate" / "now" / "config" for seed in range(3)]
    for folder, device in zip(folders, ("1 x <GPU>", "2 x another", "1 x <GPU>")):
        (folder / "environment.json").write_text(json.dumps({**kept, "device": device}))
    for name in "ab":
        main(["report", str(runs), "--out", str(tmp_path / name), "--date", "2025-01-01"])
    assert (tmp_path / "a" / "index.html").read_bytes() == (tmp_path / "b" / "index.html").read_bytes()
    shown = read(tmp_path / "a")
    assert "3 of 5 runs" in shown.text
    (start,) = [n for n, row in enumerate(shown.rows) if row == ["", "1", "2", "this report"]]
    assert shown.rows[start + 1] == ["runs", "2", "1", "-"]
    assert shown.rows[start + 2][:3] == ["device", "1 x <GPU>", "2 x another"]
    assert shown.rows[start + 3] == ["torch", "9.8.7", "9.8.7", importlib.metadata.version("torch")]
    numbers = {row[0]: row[1] for row in shown.rows[start + 5 :] if len(row) == 2}
    assert [numbers[f"slate_clevrtex, msf, seed {seed}"] for seed in range(3)] == ["1", "2", "1"]
    assert numbers["slate_clevrtex, vq, seed 0"] == "none recorded"
    lines = (tmp_path / "a" / "scores.md").read_text(encoding="utf-8").splitlines()
    assert "| runs | 2 | 1 | - |" in lines and "| slate_clevrtex, msf, seed 1 | 2 |" in lines
    (folders[0] / "environment.json").write_text("{")
    with pytest.raises(SystemExit, match=r"environment\.json is damaged"):
        main(["report", str(runs), "--out", str(tmp_path / "report")])


def test_runs_without_a_record_of_their_environment_are_said_to_have_none(runs, tmp_path):
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    shown = read(tmp_path / "report")
    assert "These runs have not recorded their environment" in shown.text
    assert ["", "this report"] in shown.rows


def test_of_a_command_run_twice_the_furthest_counts(runs):
    make_run(runs / "again" / "now", [*SLATE, "msf/variant=vq", "seed=0"], {"ari": 0.5}, step=20)
    found = [run for run in collect([runs]) if run.override("msf/variant") == "vq"]
    assert [run.step for run in found] == [20]


def test_one_run_alone_is_reported_alone(runs):
    assert [run.seed for run in collect([runs / "s1" / "slate" / "now"])] == ["1"]


def test_rows_are_named_by_what_tells_them_apart(tmp_path):
    common = ["+msf/preset=cpu", "experiment.training.steps=9"]
    for number, own in enumerate([[], ["msf/variant=vq"], ["msf/variant=gdr"], ["msf/guidance=both"], ["seed=1"]]):
        make_run(tmp_path / f"{number}" / "now", [*SLATE, *common, *own], None)
    make_run(tmp_path / "named" / "now", [*SLATE, *common, "seed=2", "msf/variant=msf"], None)
    names = {name: len(found) for name, found in name_rows(collect([tmp_path]))}
    assert names == {"vq": 1, "gdr": 1, "msf": 3, "msf msf/guidance=both": 1}
    assert list(names)[:2] == ["vq", "gdr"]  # as in the paper's Table 1


def test_settings_too_long_for_a_name_are_numbered_and_told(tmp_path):
    long = [[f"experiment.training.{name}={n}" for name in ("steps", "warmup_steps", "validate_every")] for n in (5, 7)]
    for number, own in enumerate([[], long[0], [*long[0], "msf/variant=vq"], long[1], ["dataset.batch_size=2"]]):
        make_run(tmp_path / "runs" / f"{number}" / "now", [*SLATE, *own, "seed=0"], {"ari": 0.5})
    names = [name for name, _ in name_rows(collect([tmp_path / "runs"]))]
    assert sorted(names) == ["msf", "msf dataset.batch_size=2", "msf settings 1", "msf settings 2", "vq settings 1"]
    main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    shown = " ".join(read(tmp_path / "report").text.split())
    written = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8")
    for number, own in enumerate(long, 1):
        assert f"settings {number}: {' '.join(sorted(own))}" in shown
        assert f"| settings {number} | {' '.join(sorted(own))} |" in written


def test_the_last_checkpoints_have_a_table_of_their_own(runs, tmp_path):
    for seed, ari in ((0, 0.125), (1, 0.25)):
        kinds = {kind: {"ari": ari + more, "ari_fg": 0.5} for kind, more in (("mean", 0), ("best", 0.25))}
        folder = runs / f"s{seed}" / "slate" / "now" / "protocol"
        folder.mkdir()
        (folder / "val.json").write_text(json.dumps({"by": "ari", **kinds}))
    main(["report", str(runs), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8")
    spread = f"{statistics.stdev([12.5, 25]):.2f}"
    assert f"| msf, mean | 2 | 18.75 ± {spread} | 50.00 ± 0.00 | 68.75 ± {spread} |" in text
    assert f"| msf, best | 2 | 43.75 ± {spread} | 50.00 ± 0.00 | 93.75 ± {spread} |" in text
    assert f"43.75 ± {spread}" in read(tmp_path / "report").text


def test_instruments_of_stage_1_have_a_table_and_a_picture(tmp_path):
    matches = np.random.default_rng(0).random((50, 2))
    for seed, ami in ((0, 0.25), (1, 0.5)):
        scores = {
            "inter": 3.5,
            "between/scale_1": 0.125,
            "ami/before_vote/scale_1": ami,
            "ami/group_1/scale_1": ami / 2,
        }
        scores.update({"confidence/group_1/scale_1": -0.0625, "confidence/group_1/all_scales": None})
        overrides = ["+experiment=msf/vqvae_clevrtex", f"seed={seed}"]
        folder = make_run(tmp_path / f"s{seed}" / "now", overrides, scores, "separability.json")
        np.savez(folder / "confidence.npz", **{"group_1/scale_1": matches})
    main(["report", str(tmp_path), "--out", str(tmp_path / "report")])
    lines = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8").splitlines()
    spread = f"{statistics.stdev([0.25, 0.5]):.3f}"
    for line in [
        "| msf, scale 1 (sum of groups) | - | 0.125 ± 0.000 | - | - | - | - |",
        f"| msf, scale 1 (group 1 before the vote) | 0.375 ± {spread} | - | - | - | - | - |",
        f"| msf, scale 1 (group 1) | 0.188 ± {float(spread) / 2:.3f} | - | - | - | - | -0.062 ± 0.000 |",
    ]:
        assert line in lines
    assert not any("all scales" in line for line in lines)
    shown = read(tmp_path / "report")
    assert ["msf, scale 1 sum of groups", "-", "0.125 ± 0.000", "-", "-", "-", "-"] in shown.rows
    assert any(text.startswith("Confidence of matches, vqvae_clevrtex") for text in shown.alternatives)


def test_competitors_have_their_own_numbers_in_the_paper(tmp_path):
    folders = [["+experiment=msf/dinosaur_clevrtex"], ["+experiment=msf/sysbinder_clevrtex", "msf/variant=vq"]]
    for number, overrides in enumerate(folders):
        make_run(tmp_path / f"{number}" / "now", overrides, None)
    found = {run.experiment: paper_value(run, "ari_fg") for run in collect([tmp_path])}
    assert found == {"dinosaur_clevrtex": (45.75, "Table 3"), "sysbinder_clevrtex": (71.27, "Table 1")}


def test_a_run_of_an_earlier_version_is_named_with_the_command_that_converts_it(runs, tmp_path):
    config = runs / "s1" / "slate" / "now" / "config" / "config.yaml"
    config.write_text(config.read_text().replace("stage: 2", "model: {_target_: ocl_msf.guidance.FrozenGuidance}"))
    with pytest.raises(SystemExit, match=f"ocl-msf upgrade {config.parents[1]}"):
        main(["report", str(runs), "--out", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_a_damaged_report_is_named(runs, tmp_path):
    (runs / "s1" / "slate" / "now" / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"metrics\.json is damaged"):
        main(["report", str(runs), "--out", str(tmp_path / "report")])


def test_speed_is_that_between_two_entries_of_the_log(runs):
    (run,) = collect([runs / "s1" / "slate" / "now"])
    times = [0, 10, 20, 90, 100]  # a validation in between
    assert run.log == {} and run.seconds_per_step is None
    run.log = {"train/loss_total": [Event(20 * n, 1.0, 1e9 + time) for n, time in enumerate(times)], "val/ari": []}
    assert run.seconds_per_step == 0.5


def test_guidance_has_its_own_number_in_the_paper(runs):
    folder = make_run(runs / "g" / "now", [*SLATE, "msf/guidance=both", "seed=0"], {"ari": 0.5, "ari_fg": 0.5})
    (run,) = collect([folder])
    assert paper_value(run, "ari+ari_fg") == (96.42, "Table 5")
    assert paper_value(run, "ari") is None


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in [("empty", "No run of ocl_train"), ("nowhere", "no folder")]:
        with pytest.raises(SystemExit, match=message):
            main(["report", str(tmp_path / folder), "--out", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_evaluate_makes_what_is_missing_of_finished_runs(runs, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("subprocess.call", lambda command: called.append(command[3:]) or 0)
    main(["report", str(runs), "--out", str(tmp_path / "report"), "--evaluate"])
    made = sorted((command[0], command[1].split("outputs/")[1].split("/")[0]) for command in called)
    vae = [(f"+evaluation=msf/{name}", "vae") for name in ("guidance_maps", "scores")]
    assert made == [vae[0], *(("+evaluation=msf/scenes", s) for s in ("s1", "s2")), vae[1]]
    assert all("step=1000.ckpt" in command[2] for command in called)
    (runs / "s1" / "slate" / "now" / "metrics.json").unlink()

    def make_all(command):
        called.append(command[3:])
        (runs / "s1" / "slate" / "now" / "scenes.npz").write_bytes((scenes / "scenes.npz").read_bytes())
        return 0

    scenes = runs / "s0" / "slate" / "now"
    called.clear()
    monkeypatch.setattr("subprocess.call", make_all)  # one evaluation makes the scores and the scenes
    main(["report", str(runs / "s1"), "--out", str(tmp_path / "report"), "--evaluate"])
    assert [command[0] for command in called] == ["+evaluation=msf/scores"]
    monkeypatch.setattr("subprocess.call", lambda command: 3)
    with pytest.raises(SystemExit, match="status 3"):
        main(["report", str(runs), "--out", str(tmp_path / "report"), "--evaluate"])


def test_the_report_of_a_resumed_run_has_the_whole_log_wherever_it_is_called(tmp_path, monkeypatch):
    """Its checkpoint is relative to the folder that it was launched in."""
    launch, shown = tmp_path / "launch", []
    for name, steps, source in (("first", (100, 200, 300), None), ("second", (300, 400), "first")):
        run = make_run(launch / "outputs" / name / "now", [*SLATE, "seed=0"], {"ari": 0.5}, step=steps[-1])
        log = SummaryWriter(run / "lightning_logs" / "version_0")
        for step in steps:
            log.add_scalar("val/ari_fg", step / 1000, step)
        log.close()
        (run / "config" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"cwd": str(launch)}}}))
        if source:
            checkpoint = f"outputs/{source}/now/lightning_logs/version_0/checkpoints/epoch=0-step=200.ckpt"
            (launch / checkpoint).touch()
            config = {"load_checkpoint": checkpoint, "experiment": {"stage": 2}, "trainer": {"max_steps": 1000}}
            (run / "config" / "config.yaml").write_text(json.dumps(config))

    def draw(logs, *others):
        shown.append(logs)
        return draw_curves(logs, *others)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(plots, "draw_curves", draw)
    main(["report", str(launch / "outputs" / "second"), "--out", "report"])
    (((log,),),) = [logs.values() for logs in shown]
    assert [event.step for event in log["val/ari_fg"]] == [100, 200, 300, 400]
