"""The report of a run or of a sweep: one HTML page that needs nothing but itself.

Imports the standard library and trainer.config only.

The modules that make a page are imported when one is written: most commands write none.
"""

from pathlib import Path

from trainer.config.files.layout import RunDir, SweepDir


def write(run: RunDir) -> Path:
    """Writes the run's page; returns its path."""
    from launch.report import run_page

    return run_page.write(run)


def write_sweep(sweep: SweepDir) -> Path:
    """Writes the sweep's page; returns its path."""
    from launch.report import sweep_page

    return sweep_page.write(sweep)
