"""The report: runs, their scores beside the paper's, figures, settings and commands on one page."""
