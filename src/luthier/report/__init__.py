"""What a run proved: cost, decision, and the page that shows both. `build_report` reads, `write_report` writes."""

from luthier.report.build import build_report, write_report
from luthier.report.figures import figures
from luthier.report.schema import Report

__all__ = ["Report", "build_report", "figures", "write_report"]
