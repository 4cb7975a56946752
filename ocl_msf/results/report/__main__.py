"""Write the report of some runs: index.html, one page that needs no network, and scores.md with its tables.

    python -m ocl_msf.results.report outputs --out report

The same runs give the same page but for its date. Scores are those that ocl_eval has left in the runs' folders;
what is missing is said in the page. With --evaluate, what is missing of finished runs is made first, which needs
their data (DATASET_PREFIX) and takes a while: scores, the scenes of the gallery, guidance maps.
"""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from ocl_msf.experiments.scored_runs import ScoredRun, collect
from ocl_msf.files import command_line, positive, replacing
from ocl_msf.results.report.comparison import all_tables, markdown, missing_of, run_name
from ocl_msf.results.report.page import page


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Write `index.html` and `scores.md`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m ocl_msf.results.report", description=__doc__, formatter_class=raw)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or folders that hold some at any depth")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where the report goes (default: report)")
    parser.add_argument("--evaluate", action="store_true", help="first make what is missing of finished runs")
    gallery = "scenes in a gallery, of the best, of the middle and of the worst (default: 4 each)"
    parser.add_argument("--scenes", type=positive, default=4, help=gallery)
    parser.add_argument("--date", default=None, help="what to print as its date (default: today)")
    options = parser.parse_args(arguments)
    with command_line():
        try:
            runs = collect(options.runs)
            if options.evaluate and evaluate(runs):
                runs = collect(options.runs)
            tables = all_tables(runs)
        except (FileNotFoundError, ImportError, ValueError) as error:
            sys.exit(f"error: {error}")
        date = options.date or datetime.date.today().isoformat()
        texts = {"index.html": page(runs, date, options.scenes), "scores.md": markdown(tables)}
        for name, text in texts.items():
            with replacing(options.out / name) as file:
                file.write(text.encode("utf-8"))
            print(options.out / name)


def evaluate(runs: Sequence[ScoredRun]) -> int:
    """Make what is missing of finished runs, one after the other; returns how many files that was.

    Raises:
        SystemExit: one failed; those before it are kept.
    """
    missing = [(run, file, name) for run in runs if run.run.finished for file, name in missing_of(run)]
    for number, (run, file, name) in enumerate(missing, 1):
        if not (run.run.folder / file).is_file():  # one evaluation may have made what another one makes, too
            print(f"[{number}/{len(missing)}] {run_name(run)}: {name}", flush=True)
            status = subprocess.call(_command(run, name))
            if status:
                sys.exit(f"error: evaluation {name} of {run.run.folder} ended with status {status}.")
    return len(missing)


def _command(run: ScoredRun, name: str) -> List[str]:
    chosen = [f"+evaluation=msf/{name}", f"train_config_path='{run.run.folder}/config/config.yaml'"]
    return [sys.executable, "-m", "ocl.cli.eval", *chosen, f"checkpoint_path='{run.run.checkpoint}'"]


if __name__ == "__main__":
    main()
