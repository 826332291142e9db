"""export: a run's weights for other programs, written by the run's own Python and code."""

from __future__ import annotations

import json
from pathlib import Path

import click

from launch import rundir, site, submit
from launch.cli import options


@click.command("export")
@options.for_runs
@click.option("--best", is_flag=True, help="The checkpoint that was best on the validation split, not the newest one.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write; else latest.safetensors in the run's directory.")
@click.argument("run")
def export_(run: str, best: bool, out: Path | None, site_file: Path | None, runs_dir: Path | None) -> None:
    """Write RUN's weights as a safetensors file and print its path. A run that goes on is not disturbed."""
    used, runs = options.runs_folder(site_file, runs_dir)
    found = rundir.find(run, runs)
    asked = ["--checkpoint", "best" if best else "latest", *(["--out", str(out.absolute())] if out else [])]
    result = submit.tool(found, submit.python_of(found, used), "export", *asked, needs="safetensors")
    click.echo(result.stderr, nl=False, err=True)
    written = json.loads(result.stdout)
    click.echo(f"{site.shown(written['file'])}: {written['tensors']} tensors, {written['bytes'] / 1e6:.1f} MB, from "
               f"{written['checkpoint']}, weights_sha256 {written['weights_sha256'][:16]}")
