"""How an attempt ended: one typed verdict. Standard library only: compute nodes import it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from trainer.config.files.json_files import read_json, write_json

Status = Literal["completed", "stopped", "failed"]
Verdict = Literal[
    "completed",  # ran to its last step
    "preempted",  # asked to stop by the cluster or the machine; continues
    "timeout",  # stopped before its time limit; continues
    "pruned",  # stopped by its search for better trials; continues where a person says so
    "oom_gpu",
    "oom_host",
    "nan",  # the loss or a gradient is not finite
    "data",  # a file of the data set is missing or spoilt
    "hang",
    "user_error",  # an exception in the trainer
    "infrastructure",  # the machine, not the job
    "killed",  # a process was killed and left no word
    "cancelled",  # a person said so
]

# How often an attempt may be followed by another one without a person, by how it ended. None:
# always, but that launch.runs.restarts ends what makes no step. Not here: never, since the same
# would happen again (an error, not-finite numbers, data, memory), or a person, or the search, said
# so.
RETRIES: dict[str, int | None] = {
    "preempted": None,
    "timeout": None,
    "infrastructure": 3,
    "killed": 1,
    "hang": 1,
}

EXIT_DONE, EXIT_FAILED, EXIT_WRONG, EXIT_STOPPED = 0, 1, 2, 75
OF_NODE = ("generation", "new_steps", "preempted_by_slurm")
_EXIT: dict[str, int] = {"completed": EXIT_DONE, "stopped": EXIT_STOPPED, "failed": EXIT_FAILED}


@dataclass(frozen=True)
class Outcome:
    """`outcome.json`.

    Accuracies lie between 0 and 1; `weights_sha256` is described in trainer/checkpoints/files.py.

    The last three are launch.node's, and are in attempt.json; versions before wrote them into the
    attempt's outcome. generation: the submit that the attempt belongs to (launch.runs.restarts).
    new_steps: those beyond the checkpoint that it began with, as far as a checkpoint has them. Each
    null where nobody wrote it.
    """

    status: Status
    verdict: Verdict
    attempt: str
    written_by: str
    global_step: int | None = None
    rank: int | None = None
    cause: str | None = None
    hint: str | None = None
    test_accuracy: float | None = None
    weights_sha256: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    generation: int | None = None
    new_steps: int | None = None
    preempted_by_slurm: bool = False  # Slurm's own word, not a signal alone

    @property
    def exit_code(self) -> int:
        """batchyard's exit code for this end: 0 done (a pruned trial too: nobody waits for more of
        it), 1 failed, 75 stopped after a checkpoint and to be continued.
        """
        return EXIT_DONE if self.verdict == "pruned" else _EXIT[self.status]

    @property
    def budget(self) -> str:
        """The verdict whose budget a retry takes from.

        A stop that left no checkpoint would otherwise be repeated for ever.
        """
        return "infrastructure" if "checkpoint_problem" in self.extra else self.verdict

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    def of_node(self) -> dict[str, Any]:
        """What launch.node alone knows of an end, by the keys of attempt.json."""
        return {key: getattr(self, key) for key in OF_NODE}

    def without_node(self) -> Outcome:
        """The end as an attempt's outcome.json has it: without what launch.node alone knows."""
        return replace(self, generation=None, new_steps=None, preempted_by_slurm=False)

    def without_checkpoint(self, problem: str) -> Outcome:
        """This end, where the last checkpoint could not be written, and why.

        Without its weights no run is completed.
        """
        extra = {**self.extra, "checkpoint_problem": problem}
        hint = "make room, then submit again: it continues from the newest whole checkpoint"
        if self.status == "completed":
            cause = f"the last checkpoint could not be written: {problem}"
            lost = replace(self, status="failed", verdict="infrastructure", weights_sha256=None)
            return replace(lost, cause=cause, hint=hint, extra=extra)
        if self.status == "stopped":
            return replace(
                self,
                cause=f"{self.cause}; its checkpoint was not written: {problem}",
                hint=hint,
                extra=extra,
            )
        return replace(self, extra=extra)

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """The outcome at `path`, or None where there is none.

        Keys of a newer version are left alone in the file.
        """
        found = read_json(path)
        if not isinstance(found, dict) or "status" not in found:
            return None
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in found.items() if k in known})


def retries(verdict: str, history: Sequence[str]) -> bool:
    """Whether the cluster shall start the run again by itself. history: the verdicts of the
    attempts before, of the same submit.
    """
    if verdict not in RETRIES:
        return False
    budget = RETRIES[verdict]
    return budget is None or history.count(verdict) < budget
