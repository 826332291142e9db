"""What each node of a task of a search's job array does: the first one chooses a trial, then all
are launch.node of its run.

`python -P -m launch.sweeps.trial SWEEP_DIR --slurm` from the frozen code. A task that is started
again finds what it has chosen.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from launch.backends import slurm
from launch.errors import SubmitError
from launch.node.attempt import attend
from launch.node.place import place
from launch.node.signals import POLL_S, Node, Signals
from launch.runs import state, sweep_records
from launch.runs.state import Standing
from launch.spec.folders import Folders
from launch.spec.job import Job
from launch.spec.site import Site
from launch.submit import data, write
from launch.submit import request as submit
from launch.submit.request import Ready, Request
from launch.submit.snapshot import Code
from launch.sweeps import search, study_restore
from trainer.config.files.json_files import read_json, write_json, write_text
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.lock import LockLost
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from trainer.config.run import RunConfig

CHOICE_WAIT_S = 300.0  # for the first node's choice


def leave_request(sweep: SweepDir, template: Ready, code: Code) -> None:
    """Writes what the tasks need beside the sweep's job. template: a run as they will be, prepared
    in `sweep.template`.
    """
    asked = template.request
    write_json(
        sweep.request,
        {
            "job": asked.job.name,
            "site": asked.site.model_dump(mode="json", exclude={"trusted"}, exclude_defaults=True),
            "strict": asked.strict,
            "folders": {k: str(v) for k, v in asdict(asked.folders).items()},
            "after": str(asked.after.path) if asked.after else None,
            # earlier versions, whose tasks may still be queued, know no further key of it
            "code": {
                "root": str(code.root),
                "files": [str(f) for f in code.files],
                "sha256": code.sha256,
                "commit": code.commit,
                "dirty": code.dirty,
            },
            "contents": code.contents,
            "left_out": code.left_out,
            "script": slurm.script(template.run, template.plan),
        },
    )


def read_request(sweep: SweepDir) -> tuple[Request, Code]:
    """The request and the code of the newest submit, as `leave_request` wrote them."""
    told = read_json(sweep.request)
    folders = Folders(**{k: Path(v) for k, v in told["folders"].items()})
    of_code = {
        **told["code"],
        "root": Path(told["code"]["root"]),
        "files": [Path(f) for f in told["code"]["files"]],
    }
    code = Code(**of_code, contents=told.get("contents", {}), left_out=told.get("left_out", {}))
    return (
        Request(
            Job(told["job"], sweep.job),
            code.root,
            Site.model_validate(told["site"]),
            folders,
            "slurm",
            strict=told["strict"],
            after=RunDir(Path(told["after"])) if told["after"] else None,
            sweep=sweep.sweep_id,
            trust=True,  # its submit has checked
        ),
        code,
    )


def choose(sweep: SweepDir, job: str, signals: Signals) -> RunDir | None:
    """Begins the next trial: its run is ready to start. job: this task.

    None: none is left, or this task was asked to stop, or a person has cancelled the sweep.

    Raises SubmitError; the trial then stays to be submitted again.
    """
    request, code = read_request(sweep)
    loaded, machine = submit.load(request)
    of = search.searched(sweep, loaded)
    if mended := study_restore.mend(of):
        print(mended, flush=True)
    while signals.received is None and not sweep_records.cancelled(
        sweep, sweep_records.submits(sweep)[-1]
    ):
        of.open_trials()
        if (begun := search.begin(of, request, machine)) is None:
            return None
        trial, ready = begun
        if ready is None:
            print(search.told(trial), flush=True)
            continue
        before = state.standing(ready.run, clock=state.folder_clock([ready.run]))
        if before.state in ("completed", "running"):  # by itself, or as another sweep's point
            print(
                f"trial {trial['trial']} is {trial['run_id']}, which is {before.state}: it has that"
                " result",
                flush=True,
            )
            continue
        prepare(sweep, ready, before, code, job)
        return ready.run
    return None


def prepare(sweep: SweepDir, ready: Ready, before: Standing, code: Code, job: str) -> None:
    """Writes the run directory, and with which script the run goes on by hand or by itself.

    Raises SubmitError.
    """
    run, template = ready.run, sweep.template
    # without the submit's lock: a killed task would leave it, for its lease, to the next submit
    run.path.mkdir(exist_ok=True)
    say = partial(print, flush=True)
    write.write_run(ready, before, code, None, say, shared=True)
    data.prepare_data(ready, say, prepared_before(ready.config, template))
    script = run.attempt(f"slurm-{job}.0").script
    text = str(read_json(sweep.request)["script"])
    named = text.replace(f"--job-name={template.run_id}", f"--job-name={run.run_id}")
    write_text(script, named.replace(str(template.path), str(run.path)))
    slurm.queued(run, job, sweep.slurm)


def prepared_before(config: RunConfig, template: RunDir) -> dict[str, Any] | None:
    """The record of the data that submit prepared for all trials, so that no node looks at the
    files once more.

    None: the trial's data is prepared otherwise, as where the search varies the size of the
    pictures.
    """
    record: dict[str, Any] | None = read_json(template.data_record)
    if record is None:
        return None
    of_template = RunConfig.model_validate_json(template.config.read_text())
    return record if data.prepared_alike(config, of_template) else None


def main() -> int:
    """Runs one attempt of one trial on this node. Returns batchyard's exit code."""
    parser = argparse.ArgumentParser(prog="launch.sweeps.trial", description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--slurm", action="store_true", required=True)
    sweep, signals = SweepDir(parser.parse_args().sweep), Signals()
    here = place(of_array=True)
    assert here.slurm_job is not None
    chosen = sweep.chosen(here.slurm_job)
    if here.rank == 0 and not chosen.exists():
        try:
            run = choose(sweep, here.slurm_job, signals)
        except (SubmitError, LockLost, OSError) as error:
            print(f"launch.sweeps.trial: {error}", file=sys.stderr)
            return EXIT_FAILED
        if run is None and signals.received is not None:  # started again, it chooses
            return EXIT_STOPPED
        write_json(chosen, str(run.path) if run else None)
    return follow_choice(sweep, chosen, here, signals)


def follow_choice(sweep: SweepDir, chosen: Path, here: Node, signals: Signals) -> int:
    """Every node: runs what was chosen, once that is known; the first one then tells the study how
    it ended.
    """
    end = time.monotonic() + CHOICE_WAIT_S
    while not chosen.exists():
        if signals.received is not None or time.monotonic() > end:
            print(
                f"launch.sweeps.trial: the first node has chosen no trial: there is no {chosen}",
                file=sys.stderr,
            )
            return EXIT_FAILED
        time.sleep(POLL_S)
    path = read_json(chosen)
    if path is None:
        print(f"{sweep.sweep_id}: no trial is left to begin")
        return EXIT_DONE
    code = attend(RunDir(Path(path)), here, signals)
    if here.rank == 0:
        loaded, _ = submit.load(read_request(sweep)[0])
        of = search.searched(sweep, loaded)
        if mended := study_restore.mend(of):
            print(mended, flush=True)
        of.open_trials()
    return code


if __name__ == "__main__":
    sys.exit(main())
