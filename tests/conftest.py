"""What all tests share: warnings are errors in every Python that a test starts, and nothing of the
person's own setup is read.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

OTHERS = ("BATCHYARD_", "WANDB_", "SLURM_", "SBATCH_", "SQUEUE_", "SUBMITIT_")
for name in [n for n in os.environ if n.startswith(OTHERS) and n != "BATCHYARD_DATA"]:
    del os.environ[name]
# torch's own start-up code warns in two places that are not ours to mend; each is named here with
# its reason
os.environ["PYTHONWARNINGS"] = "error"
# each of the thousand commands that tests type would compile the launcher anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test: no site file, no key, no cache of the person's."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return folder
