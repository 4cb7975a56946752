"""The report: what it finds, what it prints, and that it is the same twice."""

import json
import re
import statistics
from html.parser import HTMLParser

import pytest
from PIL import Image

from ocl_msf.report.__main__ import main
from ocl_msf.report.runs import collect, paper_value

VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Notes what is open, and every address that a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.open += [tag] if tag not in VOID else []
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_run(folder, overrides, scores, report="metrics.json", step=1000):
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.yaml").write_text("experiment: {note: a<b}\ntrainer: {max_steps: 1000}\n")
    (folder / "config" / "overrides.yaml").write_text(json.dumps(overrides))
    checkpoints = folder / "lightning_logs" / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / f"epoch=0-step={step}.ckpt").touch()
    if scores:
        (folder / report).write_text(json.dumps({"metrics": {"val": scores}}))
    return folder


SLATE = ["+experiment=msf/slate_clevrtex"]


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "outputs"
    for seed, ari in enumerate((0.25, 0.35, 0.5)):
        scores = {"ari": ari, "ari_fg": 0.5, "miou": 0.125, "mbo": 0.25}
        place = f"+experiment.root_output_folder='{seed}'"
        make_run(folder / f"s{seed}" / "slate" / "now", [*SLATE, f"seed={seed}", place], scores)
    make_run(folder / "vq" / "now", [*SLATE, "msf/variant=vq", "seed=0"], None, step=10)
    vae = make_run(
        folder / "vae" / "now",
        ["+experiment=msf/vqvae_clevrtex", "seed=0"],
        {"inter": 1.5, "intra": 0.25},
        "separability.json",
    )
    Image.new("RGB", (8, 8)).save(vae / "guidance_1.png")
    return folder


def test_scores_are_means_over_seeds_beside_the_paper(runs, tmp_path):
    main([str(runs), "--out", str(tmp_path / "report")])
    lines = (tmp_path / "report" / "scores.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("| as it is | 3 |")]
    spread = statistics.stdev([25, 35, 50])
    assert f"36.67 ± {spread:.2f} (32.7, Table 1)" in row
    assert f"86.67 ± {spread:.2f} (100.71, Table 5)" in row
    assert "50.00 ± 0.00 (80.7, Table 1)" in row
    assert "| as it is | 1 | 1.500 (0.786, Table 4) | 0.250 (0.038, Table 4) |" in lines
    assert [line for line in lines if line.startswith("| msf/variant=vq | 0 | - (20.56, Table 1)")]
    assert [line for line in lines if line.startswith("| slate_clevrtex msf/variant=vq | 0 | 10 of 1000 |")]


def test_the_page_is_whole_and_needs_no_network(runs, tmp_path):
    main([str(runs), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.addresses) == 1 and checker.addresses[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert "note: a<b" in checker.text  # escaped, not read as a tag
    assert "ocl_train +experiment=msf/slate_clevrtex seed=2" in checker.text
    assert "36.67" in checker.text and "Python" in checker.text


def test_the_same_runs_make_the_same_bytes_but_for_the_date(runs, tmp_path):
    for name, date in [("a", "2025-01-01"), ("b", "2025-01-01"), ("c", "2025-01-02")]:
        main([str(runs), "--out", str(tmp_path / name), "--date", date])
    first, second, third = ((tmp_path / name / "index.html").read_bytes() for name in "abc")
    assert first == second != third
    assert third.replace(b"2025-01-02", b"2025-01-01") == first
    assert (tmp_path / "a" / "scores.md").read_bytes() == (tmp_path / "c" / "scores.md").read_bytes()


def test_of_a_command_run_twice_the_furthest_counts(runs):
    make_run(runs / "again" / "now", [*SLATE, "msf/variant=vq", "seed=0"], {"ari": 0.5}, step=20)
    found = [run for run in collect([runs]) if run.chosen("msf/variant") == "vq"]
    assert [run.run.step for run in found] == [20]


def test_one_run_alone_is_reported_alone(runs):
    assert [run.chosen("seed") for run in collect([runs / "s1" / "slate" / "now"])] == ["1"]


def test_guidance_has_its_own_number_in_the_paper(runs):
    folder = make_run(runs / "g" / "now", [*SLATE, "msf/guidance=both", "seed=0"], {"ari": 0.5, "ari_fg": 0.5})
    (run,) = collect([folder])
    assert paper_value(run, "ari+ari_fg") == (96.42, "Table 5")
    assert paper_value(run, "ari") is None


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in [("empty", "No run of ocl_train"), ("nowhere", "no folder")]:
        with pytest.raises(SystemExit, match=message):
            main([str(tmp_path / folder), "--out", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()
