"""What the user's environment asks of wandb. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Mode = Literal["online", "offline", "disabled"]

# wandb 0.31 knows online, shared, run, offline, dryrun and disabled, in small letters alone. The
# others are what people write.
WORDS: dict[str, Mode] = {
    **dict.fromkeys(("online", "shared", "run", "on", "true", "1", "yes"), "online"),
    **dict.fromkeys(("offline", "dryrun", "dry-run", "dry_run"), "offline"),
    **dict.fromkeys(("disabled", "disable", "off", "false", "0", "no", "none"), "disabled"),
}
# WANDB_DISABLED is an older version's, and transformers': wandb 0.31 does not read it.
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def asked(environment: Mapping[str, str]) -> Mode | None:
    """What WANDB_MODE and WANDB_DISABLED ask for, in any spelling; None where neither is set, or is
    empty.

    Raises ValueError with a sentence for a word that nobody can know the meaning of.
    """
    mode, disabled = (
        environment.get(name, "").strip().lower() for name in ("WANDB_MODE", "WANDB_DISABLED")
    )
    if disabled and disabled not in (*TRUE, *FALSE):
        raise ValueError(
            f"WANDB_DISABLED={environment['WANDB_DISABLED']} is neither true nor false: set it to"
            " one, or unset it"
        )
    if mode and mode not in WORDS:
        raise ValueError(
            f"WANDB_MODE={environment['WANDB_MODE']} is none of online, offline, disabled: set it"
            " to one, or unset it"
        )
    if disabled in TRUE:
        return "disabled"
    return WORDS[mode] if mode else None
