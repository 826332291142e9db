"""The points of a sweep: each one's request, run and state."""

from __future__ import annotations

from dataclasses import replace

from launch.environment import Machine
from launch.errors import SubmitError
from launch.runs import sweep_records
from launch.runs.state import Standing
from launch.spec import sweep as sweeping
from launch.spec.job import Loaded
from launch.spec.sweep import Point
from launch.submit import request as submitting
from launch.submit.request import Ready, Request
from launch.sweeps import reconcile as sweeps_reconcile
from launch.sweeps.reconcile import Reconciled
from trainer.config.files.layout import SweepDir


def sweep_of(request: Request) -> SweepDir:
    """The sweep that the request begins or goes on with."""
    if request.sweep:
        return SweepDir(request.folders.runs / request.sweep)
    return sweep_records.sweep_for(request.job.name, request.folders.runs, new=request.new)


def resolve(
    request: Request, loaded: Loaded, machine: Machine, sweep: SweepDir
) -> list[tuple[Point, Ready]]:
    """Each point and its run, which is the one of the same configuration submitted by itself.

    In a sweep that --new began, runs of its own, which a later submit finds again by sweep.json.
    Raises SubmitError.
    """
    known = {sweeping.key(axes): run_id for axes, run_id in sweep_records.recorded(sweep)}
    alone = request.new or sweep.sweep_id != f"{request.job.name}.sweep"
    request = replace(request, new=False, sweep=sweep.sweep_id)
    found: dict[str, tuple[Point, Ready]] = {}
    for point, job in zip(loaded.points, loaded.specs, strict=True):
        ready = submitting.resolve(request, job, machine)
        recorded = known.get(point.key, "") if known else ""
        own = recorded.partition(".")[0] == ready.run.run_id
        if own and recorded != ready.run.run_id:
            ready = submitting.resolve(replace(request, run_id=recorded), job, machine)
        elif not own and alone:
            ready = submitting.resolve(replace(request, new=True), job, machine)
        other, _ = found.setdefault(ready.run.run_id, (point, ready))
        # what the spec tells apart this machine may not, as bf16 where the CPU has none
        if other is not point:
            raise SubmitError(
                f"the points {other} and {point} are one run here, {ready.run.run_id}:"
                f" {'; '.join(ready.plan.notes)}"
            )
    return list(found.values())


def reconcile(
    sweep: SweepDir, ready: list[tuple[Point, Ready]], standings: dict[str, Standing]
) -> Reconciled:
    """The points as wanted against the runs that there are."""
    runs = [(point, r.run.run_id) for point, r in ready]
    states: dict[str, str] = {run_id: s.state for run_id, s in standings.items()}
    states |= {r.run.run_id: "unreadable" for _, r in ready if r.unreadable}
    return sweeps_reconcile.reconcile(runs, states, sweep_records.recorded(sweep))
