"""Every file name in a run directory, each with its one writer.

Standard library only: compute nodes import it too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainer.config.files.json_files import read_json

PACKAGES = ".packages"


@dataclass(frozen=True)
class Attempt:
    """`runs/<run_id>/attempts/<id>/`: one start of a run.

    Ids: local-1, docker-2, slurm-<job>[_<task>].<restart>.
    """

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        """What was started, where, by whom; and which processes own it.

        Once it has ended also `generation`, `new_steps` and `preempted_by_slurm` (Outcome).
        Writer: launch.node.
        """
        return self.path / "attempt.json"

    @property
    def hardware(self) -> Path:
        """What the ranks compute on: {device, name}, cpu or cuda and the maker's name of rank 0's.

        Writer: the trainer's rank 0.
        """
        return self.path / "hardware.json"

    @property
    def script(self) -> Path:
        """The command or batch script that starts this attempt by hand.

        Writers: the backend; launch.node for an array's.
        """
        return self.path / "script.sh"

    def node_log(self, node: int) -> Path:
        """What torchrun and the container printed on one node, before and around the ranks.

        Writer: launch.node there.
        """
        return self.path / f"node-{node}.log"

    @property
    def outcome(self) -> Path:
        """How this attempt ended.

        Writers: the trainer's rank 0; launch.node where it left none, where Slurm says that it
        ended otherwise, and where nothing follows that should.
        """
        return self.path / "outcome.json"

    @property
    def discarded(self) -> Path:
        """Metrics rows after the checkpoint that this attempt continued from.

        Writer: the trainer's rank 0.
        """
        return self.path / "metrics-discarded.jsonl"

    @property
    def not_finite(self) -> Path:
        """Weights from before the step whose gradient was not finite, for replay: {weights,
        global_step}. Writer: rank 0.
        """
        return self.path / "not-finite.pt"

    def rank_log(self, rank: int) -> Path:
        """Standard output and error of one rank. Writer: that rank."""
        return self.path / f"rank-{rank}.log"

    def node_record(self, node: int) -> Path:
        """How the command ended on one node: exit status, signal, processes killed for memory.

        Writer: launch.node there.
        """
        return self.path / f"node-{node}.json"

    def rank_evidence(self, rank: int) -> Path:
        """What one rank saw when it failed or hung. Writer: that rank."""
        return self.path / "ranks" / f"{rank}.json"

    def rank_heartbeat(self, rank: int) -> Path:
        """The rank's last step and where it is, every few seconds.

        Writer: that rank (trainer.ranks.watchdog).
        """
        return self.path / "ranks" / f"{rank}.heartbeat"

    def rank_stack(self, rank: int) -> Path:
        """The Python stacks of a rank that hung. Writer: that rank (trainer.ranks.watchdog)."""
        return self.path / "ranks" / f"{rank}.stack"

    @property
    def hang(self) -> Path:
        """Exists from the moment that a rank has found a hang: the others then write theirs.

        Writers: the ranks.
        """
        return self.path / "ranks" / "hang"


@dataclass(frozen=True)
class RunDir:
    """`runs/<run_id>/`: everything about one run."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def job(self) -> Path:
        """The job as resolved: bases merged, overrides applied.

        Writers: submit; launch.runs.array_listing for an array's point as it begins, as of plan,
        code and the records of code and data.
        """
        return self.path / "job.yaml"

    @property
    def config(self) -> Path:
        """`trainer.config.run.RunConfig`: the whole truth about what the run computes.

        Writer: submit.
        """
        return self.path / "config.json"

    @property
    def plan(self) -> Path:
        """`launch.plan.Plan` of the newest submit, and its `generation`: the number of that submit.

        It is the sign that the directory is whole: a job array's point without it waits for its
        first start (launch.runs.array_listing). Writers: submit; launch.runs.array_listing.
        """
        return self.path / "plan.json"

    @property
    def code(self) -> Path:
        """The frozen code that runs. Writer: submit (launch.submit.snapshot)."""
        return self.path / "code"

    @property
    def packages(self) -> Path:
        """The one folder of the frozen code that is on the path.

        It holds links to `trainer` and `launch`, and nothing that could hide a module of Python's
        own. Code that older versions have frozen is without it. Writer: submit
        (launch.submit.snapshot).
        """
        return self.code / PACKAGES

    @property
    def code_record(self) -> Path:
        """Where the code came from: commit, dirty, sha256, versions; contents, each file's sha256;
        what was left_out, and why.

        Writer: submit (launch.submit.snapshot).
        """
        return self.path / "code.json"

    @property
    def data_record(self) -> Path:
        """The prepared data set: path, sha256, what it holds, and which of its raw files differ
        from the published checksums.

        Writer: submit (trainer.tools.prepare).
        """
        return self.path / "data.json"

    @property
    def cancel(self) -> Path:
        """Stands while a cancel stands.

        Writers: cancel, and rank 0 at wandb's stop button; the next submit removes it.
        """
        return self.path / "cancel.json"

    @property
    def lock(self) -> Path:
        """Held by the attempt that runs. Writer: launch.node."""
        return self.path / "lock.json"

    @property
    def submit_lock(self) -> Path:
        """Held while one submit decides what to do. Writer: submit."""
        return self.path / "submit-lock.json"

    @property
    def slurm(self) -> Path:
        """Slurm's job of the newest submit, and what Slurm wrote of it.

        Writer: launch.backends.slurm.
        """
        return self.path / "slurm"

    @property
    def slurm_job(self) -> Path:
        """{job_id, logs, follows}: the newest Slurm job, `12` or `12_3`, the folder of its logs,
        and the jobs that it follows.

        Writers: launch.backends.slurm, launch.runs.array_listing, and launch.node where a job
        follows another.
        """
        return self.path / "slurm/job.json"

    @property
    def outcome(self) -> Path:
        """A copy of the newest attempt's outcome. Writer: launch.node."""
        return self.path / "outcome.json"

    @property
    def metrics(self) -> Path:
        """What the config decides, bit-reproducible, no times. Writer: the trainer's rank 0."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """Speeds and memory; append-only. Writer: the trainer's rank 0."""
        return self.path / "timing.jsonl"

    @property
    def checkpoints(self) -> Path:
        """`step-<n>.<attempt>/` and the symlinks `latest` and `best`.

        Writer: the trainer's rank 0.
        """
        return self.path / "checkpoints"

    def exported(self, which: str, ending: str) -> Path:
        """The weights of the `latest` or `best` checkpoint, or a program with them.

        Writer: trainer.tools.export.
        """
        return self.path / f"{which}.{ending}"

    def killed(self, point: str, step: int) -> Path:
        """Stands once a test or a drill has killed the trainer at that point of that step.

        Writer: trainer.ranks.group.
        """
        return self.path / f".killed-{point}-{step}"

    @property
    def report(self) -> Path:
        """The report page. Writer: launch.report."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """What a person looks at, as data for the report.

        Writer: the trainer's rank 0 (trainer.output.figures).
        """
        return self.path / "figures"

    def evaluation(self, split: str) -> Path:
        """The newest evaluation of a split: {split, global_step, classes, samples, correct,
        confusion}. Writer: trainer.output.figures.

        samples, correct: of each class. confusion: rows are the truth; null where there are more
        than 100 classes. Of masks they count pixels, and there is `iou`, of each class, null where
        the split has none of it.
        """
        return self.figures / f"evaluation-{split}.json"

    @property
    def samples(self) -> Path:
        """Train pictures as the model is given them: {pictures: [{png, truth}]}; png: base64.

        Writer: trainer.output.figures.
        """
        return self.figures / "samples.json"

    @property
    def augmentations(self) -> Path:
        """Ten draws of each augmentation of one train picture: {rows: [{name, pngs}]}. Writer:
        trainer.output.figures.
        """
        return self.figures / "augmentations.json"

    @property
    def predictions(self) -> Path:
        """The first test pictures, and some from all over, as the newest evaluation took them:
        {split, global_step, pictures: [{png, truth, predicted, probability, sample}]}. Writer:
        trainer.output.figures.
        """
        return self.figures / "predictions.json"

    @property
    def misclassified(self) -> Path:
        """The most confident mistakes of the newest test evaluation, written as the predictions.

        Writer: trainer.output.figures.
        """
        return self.figures / "misclassified.json"

    @property
    def masks(self) -> Path:
        """Some test pictures of the newest evaluation: {split, global_step, classes: [{name,
        colour}], scenes: [{picture, truth, predicted, accuracy, sample}]}; picture and both masks:
        base64 of PNG files. Writer: trainer.output.figures.
        """
        return self.figures / "masks.json"

    @property
    def predicted(self) -> Path:
        """Labelled pictures and masks of what the model was asked about.

        Writer: trainer.tools.predict.
        """
        return self.path / "predicted"

    @property
    def wandb(self) -> Path:
        """wandb's own files. Writer: the trainer's rank 0."""
        return self.path / "wandb"

    @property
    def attempts(self) -> Path:
        """The parent of the attempts' directories. Writers: the backends."""
        return self.path / "attempts"

    def attempt(self, attempt_id: str) -> Attempt:
        return Attempt(self.attempts / attempt_id)

    def all_attempts(self) -> list[Attempt]:
        """Attempts, oldest first, by the time that each was made."""
        try:
            with os.scandir(self.attempts) as entries:
                found = [self.attempts / e.name for e in entries if e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [
            Attempt(p)
            for p in (
                sorted(found, key=lambda p: (_started(p), p.name)) if len(found) > 1 else found
            )
        ]


@dataclass(frozen=True)
class SweepDir:
    """`runs/<job>.sweep/`: what the points of a sweep share.

    Each point is a run of its own, beside this directory.
    """

    path: Path

    @property
    def sweep_id(self) -> str:
        return self.path.name

    @property
    def job(self) -> Path:
        """The job as resolved, its sweep in it. Writer: submit."""
        return self.path / "job.yaml"

    @property
    def record(self) -> Path:
        """{job, submits: [{started, ended, backend, settings, points: [{axes, run_id, error}], and
        the process}]}. A search's points have its study and their number in it, too: {study,
        trial}. Writers: submit and launch.sweeps.trial (launch.runs.sweep_records).
        """
        return self.path / "sweep.json"

    @property
    def cancel(self) -> Path:
        """When a person last cancelled the sweep: a submit that began before begins no further
        point. Writer: cancel.
        """
        return self.path / "cancel.json"

    @property
    def slurm(self) -> Path:
        """The job arrays' scripts, the runs that each one's tasks are, and what Slurm wrote of
        them. Writer: launch.backends.slurm.
        """
        return self.path / "slurm"

    @property
    def journal(self) -> Path:
        """The studies of a search: optuna's journal, one line a change.

        Writers: optuna, in submit, in launch.sweeps.trial and in each trial's rank 0.
        """
        return self.path / "study.journal"

    @property
    def request(self) -> Path:
        """What a search's tasks on Slurm must know of their submit: {job, site, folders, strict,
        after, code, script}.

        Writer: submit (launch.sweeps.trial).
        """
        return self.path / "request.json"

    @property
    def template(self) -> RunDir:
        """A run as a trial on Slurm will be: its data is made ready before there is one.

        Writer: submit.
        """
        return RunDir(self.path / "template")

    def chosen(self, job: str) -> Path:
        """The run that a task of a search's job array has chosen; null: none was left.

        Writer: launch.sweeps.trial on its first node.
        """
        return self.slurm / f"chosen-{job}.json"

    @property
    def queue_lock(self) -> Path:
        """Held while a submit queues job arrays. Writer: submit."""
        return self.path / "queue-lock.json"

    @property
    def submit_lock(self) -> Path:
        """Held while a submit writes here. Writer: submit."""
        return self.path / "submit-lock.json"

    def code(self, sha256: str) -> Path:
        """The code that a submit's points are frozen from, however long it takes.

        Writer: submit (launch.submit.snapshot).
        """
        return self.path / "code" / sha256[:12]

    @property
    def report(self) -> Path:
        """The sweep's page. Writer: launch.report."""
        return self.path / "report.html"

    def run(self, run_id: str) -> RunDir:
        return RunDir(self.path.parent / run_id)


def _started(attempt: Path) -> float:
    record = read_json(attempt / "attempt.json")
    try:
        return float(record["started"])
    except (TypeError, KeyError, ValueError, OverflowError):  # not written yet, or not by us
        return attempt.stat().st_mtime
