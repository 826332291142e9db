"""Where metrics go: metrics.jsonl and timing.jsonl first, which are the truth; wandb after them, a sink that never stops training.

The only module that imports wandb. Rank 0 alone uses it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from trainer.config.run import RunConfig
from trainer.distributed import World

CONNECT_S = 3.0  # wandb's own wait for a server that is down is 90 s


class Tracker:
    """Appends rows; each is on disk before wandb hears of it."""

    def __init__(self, config: RunConfig, world: World, metrics_bytes: int) -> None:
        """metrics_bytes: length of metrics.jsonl at the checkpoint that the run continues from; 0 for a new run."""
        self.run, self.attempt = world.run, world.attempt
        _cut(self.run.metrics, metrics_bytes, self.attempt.discarded)
        self.metrics = self.run.metrics.open("a")
        self.timing = self.run.timing.open("a")
        self.wandb = _start_wandb(config, world)

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl: only what the config decides, no times."""
        self.metrics.write(json.dumps(row) + "\n")
        self.metrics.flush()
        prefix = row["kind"] if row["kind"] == "train" else row["split"]
        numbers = {f"{prefix}/{k}": v for k, v in row.items() if isinstance(v, float)}
        self._send({"global_step": row["global_step"], "epoch": row["epoch"], **numbers})

    def log_timing(self, row: dict[str, Any]) -> None:
        """A row of timing.jsonl."""
        self.timing.write(json.dumps({"attempt": self.attempt.id, **row}) + "\n")
        self.timing.flush()
        self._send({f"timing/{k}" if k != "global_step" else k: v for k, v in row.items()})

    def synced_bytes(self) -> int:
        """Length of metrics.jsonl in bytes, after it has reached the disk: what a checkpoint's manifest records."""
        self.metrics.flush()
        os.fsync(self.metrics.fileno())
        return self.metrics.tell()

    def finish(self, exit_code: int) -> None:
        self.metrics.close()
        self.timing.close()
        if self.wandb is not None:
            try:
                self.wandb.finish(exit_code=exit_code)
            except Exception as error:
                _complain("wandb could not finish", error)

    def _send(self, values: dict[str, Any]) -> None:
        if self.wandb is None:
            return
        try:
            self.wandb.log(values)
        except Exception as error:
            _complain("wandb stopped working; metrics.jsonl goes on", error)
            self.wandb = None


def _cut(path: Path, length: int, discarded: Path) -> None:
    """Cuts the file to `length` bytes and keeps what was behind it in `discarded`."""
    if not path.exists():
        if length:
            raise FileNotFoundError(f"{path} is gone; the checkpoint was written when it had {length} bytes")
        return
    with path.open("r+b") as file:
        file.seek(length)
        rest = file.read()
        if rest:
            discarded.write_bytes(rest)
            file.truncate(length)


def _start_wandb(config: RunConfig, world: World) -> Any:
    tracking = config.execution.tracking
    if tracking.mode == "disabled":
        return None
    try:
        import wandb  # 0.5 s, and only where it is wanted

        world.run.wandb.mkdir(exist_ok=True)
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "30")  # else finish() waits for ever for a server that went away
        mode = "online" if tracking.mode == "auto" and _server_answers() else "offline"
        run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            id=config.run_id.replace(".", "-"),
            name=config.run_id,
            group=config.job,
            dir=str(world.run.path),
            mode=mode,
            resume="allow",
            config=config.train.model_dump(mode="json"),
            # wandb would upload every SLURM_* variable, the argv and the machine's name
            settings=wandb.Settings(
                x_disable_meta=True, x_disable_stats=True, disable_git=True, save_code=False, console="off", silent=True
            ),
        )
        run.define_metric("*", step_metric="global_step")
        print(f"wandb: {mode}" + (f", {run.url}" if mode == "online" else f", files in {world.run.wandb}"))
        return run
    except ImportError:
        print("wandb: not installed; metrics.jsonl alone")
    except Exception as error:
        _complain("wandb could not start; metrics.jsonl goes on", error)
    return None


def _server_answers() -> bool:
    """Whether there is a key, and the server takes a request within CONNECT_S seconds."""
    import netrc
    from urllib.parse import urlparse

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    key = os.environ.get("WANDB_API_KEY")
    if not key:
        try:
            found = netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(url).hostname or "")
        except (OSError, netrc.NetrcParseError):
            found = None
        if not found:
            return False
    request = urllib.request.Request(
        f"{url}/graphql", data=b'{"query": "query Viewer { viewer { id } }"}', headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_S):
            return True
    except urllib.error.HTTPError:
        return True  # it is there; whether it takes the key is its own answer
    except OSError as error:
        print(f"wandb: no answer from the server ({error}); offline, to be synced later")
        return False


def _complain(what: str, error: Exception) -> None:
    print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr)
