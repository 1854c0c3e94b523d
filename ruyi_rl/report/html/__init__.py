"""`report.html`: all that a run has shown so far, as one page that needs nothing else. Imports no torch."""

from ruyi_rl.report.html.page import write_report

__all__ = ["write_report"]
