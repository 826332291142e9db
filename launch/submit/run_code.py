"""Which code a run continues with: what it was frozen with, or the user's of now."""

from __future__ import annotations

import json

from launch.submit.snapshot import Code
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.outcome import Outcome

# After these ends the code of the run is as good as it was: going on with it keeps the run
# bit-exact.
KEEP_CODE = (
    "preempted",
    "timeout",
    "pruned",
    "cancelled",
    "killed",
    "infrastructure",
    "oom_host",
    "hang",
)


def is_kept(run: RunDir, outcome: Outcome | None) -> bool:
    """Whether the run continues with its frozen code: it has started, and its end was not the
    code's doing.
    """
    has_started = run.code_record.exists() and bool(run.all_attempts())
    return has_started and (outcome is None or outcome.verdict in KEEP_CODE)


def differs(run: RunDir, code: Code) -> bool:
    """Whether a run is frozen with other code than `code`."""
    try:
        return bool(json.loads(run.code_record.read_text())["sha256"] != code.sha256)
    except (OSError, ValueError, KeyError):
        return False


def keep_code(sweep: SweepDir, code: Code, trusted: list[str], *, trust: bool) -> Code:
    """The code from a copy in the sweep's directory, so that all points of a submit have one.

    trusted, trust: whose copy may be taken where there is one, as for `trust.check`. Raises
    SubmitError, and DistrustError.
    """
    from launch.runs.locks import take
    from launch.submit import snapshot
    from launch.submit import trust as trusting

    lock = take(sweep.submit_lock, sweep.sweep_id)
    try:
        was_there = sweep.code(code.sha256).exists()
        kept = snapshot.keep(code, sweep.code(code.sha256))
        if was_there:
            record = {"contents": code.contents}
            copy = trusting.FrozenCode(sweep.sweep_id, kept.root, record, sweep.path.parent)
            trusting.check_code(copy, trusted, once=trust)
        return kept
    finally:
        lock.release()
