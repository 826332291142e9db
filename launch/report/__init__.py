"""The report of a run: one HTML page that needs nothing but itself. Imports the standard library and trainer.config only."""

from launch.report.page import write

__all__ = ["write"]
