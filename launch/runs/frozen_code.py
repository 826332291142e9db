"""How the code that a run is frozen with is started."""

from __future__ import annotations

from pathlib import Path

from trainer.config.files.layout import PACKAGES


def on_path(code: Path) -> Path:
    """What goes on PYTHONPATH so that `code` runs.

    That is its folder of packages; of code that older versions have frozen, which has none, itself.
    """
    packages = code / PACKAGES
    return code if code.exists() and not packages.exists() else packages


def module_of(code: Path, *names: str) -> str | None:
    """The first of the modules that the code in a folder has; None: it has none of them."""
    packages = on_path(code)
    for name in names:
        if (packages / f"{name.replace('.', '/')}.py").exists():
            return name
    return None
