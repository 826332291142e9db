"""export: a run's weights for other programs, written by the run's own Python and code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import click

from launch import local, rundir, site
from launch.cli import options
from launch.submit import SubmitError
from trainer.config.layout import read_json
from trainer.config.outcome import EXIT_WRONG


@click.command("export")
@options.for_runs
@click.option("--best", is_flag=True, help="The checkpoint that was best on the validation split, not the newest one.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; else latest.safetensors in the run's directory.")
@click.argument("run")
def export_(run: str, best: bool, out: Path | None, site_file: Path | None, runs_dir: Path | None) -> None:
    """Write RUN's weights as a safetensors file and print its path. A run that goes on is not disturbed."""
    used, runs = options.runs_folder(site_file, runs_dir)
    found = rundir.find(run, runs)
    python = str((read_json(found.plan) or {}).get("python") or site.python(used))
    if not local.python_has(python, "safetensors"):
        raise SubmitError(
            f"{python} cannot write safetensors: install the extra 'train' there, or name another `python:` in the site file"
        )
    argv = [python, "-P", "-m", "trainer.export", str(found.config), "--checkpoint", "best" if best else "latest"]
    argv += ["--out", str(out.absolute())] if out else []
    result = subprocess.run(argv, env=site.environment(PYTHONPATH=str(found.code)), capture_output=True, text=True, check=False)
    if result.returncode == EXIT_WRONG:  # a message for a person
        raise SubmitError(result.stderr.strip())
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-8:])
        raise SubmitError(f"exporting failed ({result.returncode}):\n  {' '.join(argv)}\n{tail}")
    click.echo(result.stderr, nl=False, err=True)
    written = json.loads(result.stdout)
    click.echo(f"{site.shown(written['file'])}: {written['tensors']} tensors, {written['bytes'] / 1e6:.1f} MB, from "
               f"{written['checkpoint']}, weights_sha256 {written['weights_sha256'][:16]}")
