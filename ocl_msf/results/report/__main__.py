"""Write the report of some runs: index.html, one page that needs no network, and scores.md with its tables.

    python -m ocl_msf.results.report outputs --out report

The same runs give the same page but for its date. Scores are those that ocl_eval has left in the runs' folders;
what is missing is said in the page. With --evaluate, what is missing of finished runs is made first, which needs
their data (DATASET_PREFIX) and takes a while: scores, the scenes of the gallery, guidance maps.
"""

import argparse
import datetime
from pathlib import Path
from typing import Optional, Sequence

from ocl_msf.files import command_line, positive
from ocl_msf.results.report.evaluations import evaluate
from ocl_msf.results.report.page import write_report
from ocl_msf.results.rows import collect


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
        runs = collect(options.runs)
        if options.evaluate and evaluate(runs):
            runs = collect(options.runs)
        for path in write_report(runs, options.out, options.date or datetime.date.today().isoformat(), options.scenes):
            print(path)


if __name__ == "__main__":
    main()
