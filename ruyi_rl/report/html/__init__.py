"""`report.html`: all that a run has shown so far, as one page that needs nothing else. Imports no torch."""

from ruyi_rl.report.html.page import FILE, write_report

__all__ = ["FILE", "write_report"]
