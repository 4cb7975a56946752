"""Write the report of some runs: `python -m ocl_msf.report RUNS... --out report`."""

import argparse
import datetime
import sys
from pathlib import Path
from typing import Optional, Sequence

from ocl_msf.data._work import replacing
from ocl_msf.report.page import markdown, page, run_table, score_tables
from ocl_msf.report.runs import collect


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Write `index.html` and `scores.md`."""
    parser = argparse.ArgumentParser(prog="python -m ocl_msf.report", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or folders that hold some at any depth")
    parser.add_argument("--out", type=Path, default=Path("report"), help="where the report goes (default: report)")
    parser.add_argument("--date", default=None, help="what to print as its date (default: today)")
    options = parser.parse_args(arguments)
    try:
        runs = collect(options.runs)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    date = options.date or datetime.date.today().isoformat()
    texts = {"index.html": page(runs, date), "scores.md": markdown([*score_tables(runs), run_table(runs)])}
    for name, text in texts.items():
        with replacing(options.out / name) as file:
            file.write(text.encode("utf-8"))
        print(options.out / name)


if __name__ == "__main__":
    main()
