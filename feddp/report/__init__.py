"""A job's report: one HTML file that needs nothing else."""

from feddp.report.page import render

__all__ = ["render"]
