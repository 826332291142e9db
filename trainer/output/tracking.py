"""Where metrics go: metrics.jsonl and timing.jsonl first, which are the truth; wandb after them, a
sink that never stops training.

The only module that imports wandb. Rank 0 alone uses it.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib import error, parse, request

from trainer.config import wandb_mode
from trainer.config.files.json_files import finite_or_none, to_json, write_json
from trainer.config.run import RunConfig
from trainer.ranks.group import World

CONNECT_S = 3.0  # for a server that is down; wandb itself would wait 90 s


class Tracker:
    """Appends rows; each is on disk before wandb hears of it."""

    def __init__(self, config: RunConfig, world: World, metrics_bytes: int) -> None:
        """metrics_bytes: length of metrics.jsonl at the checkpoint that the run continues from; 0
        for a new run.
        """
        self.run, self.attempt = world.run, world.attempt
        _cut(self.run.metrics, metrics_bytes, self.attempt.discarded)
        self.metrics, self.timing = Rows(self.run.metrics), Rows(self.run.timing)
        self.wandb = _start_wandb(config, world)

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl: only what the config decides, no times.

        What is not finite is null there, and not sent.
        """
        row = finite_or_none(row)
        self.metrics.append(row)
        prefix = row["kind"] if row["kind"] == "train" else row["split"]
        numbers = {f"{prefix}/{k}": v for k, v in row.items() if isinstance(v, float)}
        self._send({"global_step": row["global_step"], "epoch": row["epoch"], **numbers})

    def log_timing(self, row: dict[str, Any]) -> None:
        """A row of timing.jsonl."""
        self.timing.append({"attempt": self.attempt.id, **row})
        self._send(
            {k if k in ("global_step", "epoch") else f"timing/{k}": v for k, v in row.items()}
        )

    def finish(self, exit_code: int) -> None:
        self.metrics.close()
        self.timing.close()
        try:
            if self.wandb is not None:
                # stopped, to be continued: else wandb would show the run as failed
                if exit_code == 75:
                    self.wandb.mark_preempting()
                self.wandb.finish(exit_code=exit_code)
        except Exception as fault:
            _complain("wandb could not finish", fault)

    def _send(self, values: dict[str, Any]) -> None:
        try:
            if self.wandb is not None:
                self.wandb.log(values)
        except Exception as fault:
            _complain("wandb stopped working; metrics.jsonl goes on", fault)
            self.wandb = None


class Rows:
    """A .jsonl file that grows.

    Rows that a full disk does not take wait in memory for the next one.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)
        self.waiting = b""

    def append(self, row: dict[str, Any]) -> None:
        fell_behind = bool(self.waiting)
        self.waiting += to_json(row).encode() + b"\n"
        if (fault := self._write()) and not fell_behind:
            _complain(f"{self.file.name} takes no more rows; they wait in memory", fault)

    def length(self) -> int:
        """Bytes of all rows, those that still wait among them: what a checkpoint's manifest
        records.
        """
        self._write()
        return self.file.tell() + len(self.waiting)

    def _write(self) -> OSError | None:
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as fault:
            return fault
        return None

    def close(self) -> None:
        if fault := self._write():
            _complain(f"the last {len(self.waiting)} bytes of {self.file.name} are lost", fault)
        self.file.close()


def _cut(path: Path, length: int, discarded: Path) -> None:
    """Cuts the file to `length` bytes and keeps what was behind it in `discarded`."""
    if not path.exists():
        if length:
            raise FileNotFoundError(
                f"{path} is gone; the checkpoint was written when it had {length} bytes"
            )
        return
    with path.open("r+b") as file:
        file.seek(length)
        rest = file.read()
        if rest:
            discarded.write_bytes(rest)
            file.truncate(length)


def _start_wandb(config: RunConfig, world: World) -> Any:
    """The wandb run: online where there is a key and a server, else offline.

    None where there shall or can be none.
    """
    wanted = (config.execution.tracking.mode, _asked_of_wandb())  # the quieter one counts
    if "disabled" in wanted:
        return None
    try:
        import wandb  # 0.5 s, and only where it is wanted

        world.run.wandb.mkdir(exist_ok=True)
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")  # wandb's own: 90 s
        # wandb's own: for ever, after a server that went away
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "30")
        if "offline" not in wanted and _server_answers(wandb.setup().settings):
            try:
                return _init(wandb, "online", config, world)
            except Exception as fault:
                _complain("wandb could not start online", fault)
                wandb.teardown()  # else the next init would say that the id is in use
        return _init(wandb, "offline", config, world)
    except ImportError:
        print("wandb: not installed; metrics.jsonl alone", flush=True)
    except Exception as fault:
        _complain("wandb could not start; metrics.jsonl goes on", fault)
    return None


def _asked_of_wandb() -> wandb_mode.Mode | None:
    """What the environment asks for, from then on in wandb's own word: it would refuse any other
    spelling.

    A word that has no meaning is refused before a run begins; of one that only this machine has,
    offline loses nothing.
    """
    try:
        mode = wandb_mode.asked(os.environ)
    except ValueError as fault:
        print(f"wandb: {fault}; offline", flush=True)
        mode = "offline"
    os.environ.pop("WANDB_MODE", None)
    if mode is not None:
        os.environ["WANDB_MODE"] = mode
    return mode


def _init(wandb: Any, mode: str, config: RunConfig, world: World) -> Any:
    """One id for all attempts, so that they continue one wandb run.

    Uploaded rows may repeat: readers take the last of a step.
    """
    run = wandb.init(
        project=config.execution.tracking.project,
        entity=config.execution.tracking.entity,
        id=config.run_id.replace(".", "-"),
        name=config.run_id,
        group=config.sweep or config.job,
        dir=str(world.run.path),
        mode=mode,
        resume="allow",
        config=config.train.model_dump(mode="json"),
        # wandb would upload every SLURM_* variable, the argv and the machine's name
        settings=wandb.Settings(
            x_disable_meta=True,
            x_disable_stats=True,
            disable_git=True,
            save_code=False,
            console="off",
            silent=True,
            host="batchyard",
            stop_fn=partial(_stop, world),
        ),
    )
    run.define_metric("*", step_metric="global_step")
    print(
        f"wandb: {mode}, " + (run.url if mode == "online" else f"files in {world.run.wandb}"),
        flush=True,
    )
    return run


def _stop(world: World) -> None:
    """wandb's stop button: a cancel, else Slurm would requeue the run; comes 15 s after the start
    or later: the loop listens.
    """
    write_json(world.run.cancel, {"time": time.time(), "attempt": world.attempt.id})
    os.kill(os.getpid(), signal.SIGTERM)


def _server_answers(settings: Any) -> bool:
    """Whether there is a key, and the server takes a request within CONNECT_S seconds."""
    if not (settings.api_key or settings.identity_token_file or _stored_key(settings.base_url)):
        return False
    body = b'{"query": "query Viewer { viewer { id } }"}'
    query = request.Request(
        f"{settings.base_url}/graphql", body, {"Content-Type": "application/json"}
    )
    try:
        with request.urlopen(query, timeout=CONNECT_S):
            return True
    except Exception as fault:
        if isinstance(fault, error.HTTPError) and fault.code < 500:
            return True  # it is there; whether it takes the key is its own answer
        print(
            f"wandb: no answer from the server ({fault}); offline, to be synced later", flush=True
        )
        return False


def _stored_key(url: str) -> bool:
    """Whether netrc has a key for the server. wandb 0.31 moved its own and still takes a key under
    the old name.
    """
    try:
        found = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) for host in (parse.urlsplit(url).netloc, "api.wandb.ai"))


def _complain(what: str, fault: Exception) -> None:
    with contextlib.suppress(OSError):
        reason = " ".join(str(fault).split())  # pydantic's, of a WANDB_* variable, has lines
        print(f"{what}: {type(fault).__name__}: {reason}", file=sys.stderr, flush=True)
