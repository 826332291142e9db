"""The report of a run or of a sweep: one HTML page that needs nothing but itself. Imports the standard library and trainer.config
only."""

from launch.report.page import write
from launch.report.sweep import write as write_sweep

__all__ = ["write", "write_sweep"]
