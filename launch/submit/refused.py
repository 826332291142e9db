"""What a first submit that is refused leaves behind: nothing."""

from __future__ import annotations

import shutil
from contextlib import suppress

from trainer.config.files.layout import RunDir


def discard(run: RunDir) -> None:
    """Removes what a first submit wrote that was refused or interrupted, so that it leaves no run.

    Only what submit writes is removed; the lock, which it holds, and a user's own files stay.
    Nothing is removed where the run may have begun or be in the queue.
    """
    # a job's id, or the intent of one
    if run.all_attempts() or any(path.suffix == ".json" for path in run.slurm.glob("*")):
        return
    written = (run.config, run.job, run.plan, run.code_record, run.data_record, run.code, run.slurm)
    with suppress(OSError):
        for path in written:  # the configuration first: without it there is no run
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(run.path / f".{run.code.name}.tmp", ignore_errors=True)
        if run.attempts.is_dir():
            run.attempts.rmdir()


def remove_if_empty(run: RunDir) -> None:
    """Removes the directory of a run of which nothing is left, not even the lock of
    another submit.
    """
    with suppress(OSError):
        run.path.rmdir()
