"""The one training loop. `main` reads as a table of contents."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import checkpoint, distributed, models, optim, randomness, watchdog
from trainer.config.layout import RunDir, write_json
from trainer.config.outcome import Outcome
from trainer.config.run import RunConfig, TrainConfig
from trainer.data.batches import Batches, MicroBatch
from trainer.data.prepared import Prepared, load
from trainer.distributed import Agreement, World
from trainer.evaluate import evaluate
from trainer.tracking import Tracker


def main(config_path: str) -> None:
    """Trains the run that `config_path` (RUN_DIR/config.json) describes, from its newest checkpoint where it has one."""
    run = RunDir(Path(config_path).absolute().parent)
    try:
        config = RunConfig.model_validate_json(Path(config_path).read_text())
        world = distributed.start(config, run)
        write_to_rank_log(world)
        data = load(run)
        trainer = Trainer(config, world, data)
        trainer.restore()
        outcome = train(trainer)
        trainer.finish(outcome)
        distributed.finish(world)
    except BaseException as error:
        leave_evidence(run, error)
        raise


def train(t: Trainer) -> Outcome:
    """The loop: from the step that was restored to the last one, or to the step at which all ranks agree to stop."""
    config, model, optimizer, batches = t.config.train, t.model, t.optimizer, t.batches
    agreement = Agreement(t.world, t.config.execution.checkpoint_every_min)
    agreement.listen()
    model.train()
    while t.step < t.total_steps:
        waited = time.perf_counter()
        micro_batches = batches.at(t.step)
        t.clock.waited(waited)
        distributed.inject_fault(t.world, t.step, micro_batches[0].images)

        lr = optim.learning_rate(config.optimizer.lr, config.schedule, t.step, batches.steps_per_epoch, t.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        gradients(model, micro_batches, t.step, config, t.world, t.sums)
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if config.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.clip_grad_norm, grad_norm)
        # A gradient that is not finite turns this and every later update into no-ops, on the device, without a wait.
        torch.maximum(t.not_finite, (~torch.isfinite(grad_norm)).float(), out=t.not_finite)
        t.good_steps += 1 - t.not_finite
        optimizer.found_inf = t.not_finite  # read by the fused kernels, as GradScaler sets it
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # DDP's buckets are the gradients' memory
        t.step += 1
        watchdog.step(t.step)

        end_of_epoch = t.step % batches.steps_per_epoch == 0
        if t.step % t.config.execution.log_every_steps == 0 or end_of_epoch:
            t.log_train(lr, grad_norm)
        if end_of_epoch and (t.epoch % config.evaluate_every_epochs == 0 or t.step == t.total_steps):
            t.log_evaluation()
        stop, due = agreement()
        every = t.config.execution.checkpoint_every_steps
        stop = stop or t.step == t.config.execution.stop_after_step
        if t.step == t.total_steps:
            break
        if stop or due or (every and t.step % every == 0):
            if outcome := t.found_not_finite():
                return outcome
            t.save()
        if stop:
            return t.stopped()
    if outcome := t.found_not_finite():
        return outcome
    t.save()
    return t.completed()


def gradients(
    model: nn.Module, micro_batches: list[MicroBatch], step: int, config: TrainConfig, world: World, sums: Tensor
) -> None:
    """Adds the gradient of the mean loss over all samples of the step, over all ranks, to the parameters' `.grad`.

    DDP averages over ranks, so each rank's loss is world_size * (sum over its samples) / (samples of the step). The expected
    gradient is the same for any number of ranks. sums: float64 [3], gains (loss sum, correct, samples) of this rank.
    """
    for i, batch in enumerate(micro_batches):
        with distributed.reduction(model, on=i == len(micro_batches) - 1):
            if batch.chunk is None:  # no samples in this round: take part in the reduction at weight zero
                model.eval()  # leaves BatchNorm's buffers alone
                (model(batch.images).float().sum() * 0.0).backward()
                model.train()
                continue
            randomness.seed_dropout(config.seed, step, batch.chunk, world.device)
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(batch.images)
            loss_sum = functional.cross_entropy(
                logits.float(), batch.labels, reduction="sum", label_smoothing=config.label_smoothing
            )
            (loss_sum * (world.size / batch.global_samples)).backward()
            correct = (logits.detach().argmax(1) == batch.labels).sum()
            sums += torch.stack((loss_sum.detach().double(), correct.double(), sums.new_tensor(len(batch.labels))))


class Clock:
    """Times since the last log line, on the host; nothing here waits for the device."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.restart()

    def restart(self) -> None:
        self.begun, self.wait_s, self.steps = time.perf_counter(), 0.0, 0

    def waited(self, since: float) -> None:
        self.wait_s += time.perf_counter() - since
        self.steps += 1


class Trainer:
    """What the loop works on: the model and all state of a run, and how they are logged, saved and restored."""

    def __init__(self, config: RunConfig, world: World, data: Prepared) -> None:
        self.config, self.world, self.data = config, world, data
        train = config.train
        images = data.splits["train"].images
        randomness.seed_everything(train.seed)
        bare = models.build(train.model, len(data.classes), images.shape[1], images.shape[2:], train.init).to(world.device)
        if train.channels_last:
            bare = bare.to(memory_format=torch.channels_last)
        self.initial = {k: v.clone() for k, v in bare.state_dict().items()}
        self.model = distributed.wrap(bare, world)
        self.optimizer = optim.build(self.model, train)
        self.batches = Batches(
            data, train.data, seed=train.seed, global_batch_size=train.global_batch_size,
            micro_batch_size=config.micro_batch_size(), rank=world.rank, world_size=world.size, device=world.device,
            channels_last=train.channels_last,
        )
        self.total_steps = train.epochs * self.batches.steps_per_epoch
        self.step = 0
        self.test_accuracy: float | None = None
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # loss, correct, samples since the last row
        self.not_finite = torch.zeros((), device=world.device)
        self.good_steps = torch.zeros((), dtype=torch.float64, device=world.device)
        self.optimizer.grad_scale = None  # beside found_inf: what the fused kernels look for
        self.clock = Clock()
        self.tracker: Tracker | None = None
        self.first_step = 0

    @property
    def epoch(self) -> int:
        """The epoch that the last step belongs to; 1 is the first."""
        return -(-self.step // self.batches.steps_per_epoch)

    def restore(self) -> None:
        """Continues from the newest whole checkpoint, or starts from the initial weights; all ranks from the same one."""
        self._warm_up()
        found, complaints = checkpoint.load_newest(self.world.run)
        if self.world.size > 1:
            torch.distributed.barrier()  # every rank has read before rank 0 moves anything
        if self.world.rank == 0:
            checkpoint.quarantine(self.world.run, complaints)
            for complaint in complaints:
                say(f"checkpoint passed over and moved aside: {complaint}")
        if found:
            self._load(found)
        else:
            distributed.unwrap(self.model).load_state_dict(self.initial)
        self.first_step = self.step
        if self.world.rank == 0:
            self.tracker = Tracker(self.config, self.world, found.manifest["metrics_bytes"] if found else 0)
            say(
                f"{self.config.run_id} {self.world.attempt.id}: {self.world.size} rank(s) on {self.world.device.type}, "
                f"step {self.step} of {self.total_steps}" + (f", continued from {found.path.name}" if found else "")
            )

    def _warm_up(self) -> None:
        """Two throw-away passes: DDP rebuilds its buckets after the first, and would sum a continued run's first step in
        another order than the undisturbed run did. The state is loaded afterwards."""
        images = torch.zeros((2, *self.data.splits["train"].images.shape[1:]), device=self.world.device)
        for _ in range(2 if self.world.size > 1 else 0):
            self.model(images).sum().backward()
        self.optimizer.zero_grad(set_to_none=False)

    def _load(self, found: checkpoint.Checkpoint) -> None:
        manifest = found.manifest
        for what, now in (("digest", self.config.train.digest()), ("data_sha256", self.data.sha256)):
            if manifest[what] != now:
                raise ValueError(f"{found.path.name} was written with another {what}: {manifest[what]}, now {now}")
        distributed.unwrap(self.model).load_state_dict(found.weights)
        self.optimizer.load_state_dict(found.trainer["optimizer"])
        self.step, self.test_accuracy = found.trainer["global_step"], found.trainer["test_accuracy"]
        sums = found.trainer["sums"]  # one a rank, so that the next row adds them in the same order
        if len(sums) == self.world.size:
            self.sums.copy_(sums[self.world.rank])
        else:
            if self.world.rank == 0:
                self.sums.copy_(torch.stack(sums).sum(0))
                say(f"written by {len(sums)} rank(s), continued by {self.world.size}: no longer bit-exact")

    def save(self) -> None:
        """Publishes a checkpoint of this step. Collective."""
        sums = distributed.gather(self.sums, self.world)
        if self.world.rank == 0:
            checkpoint.save(
                self.world.run,
                self.world.attempt,
                self.step,
                weights=distributed.unwrap(self.model).state_dict(),
                trainer={
                    "optimizer": self.optimizer.state_dict(),
                    "global_step": self.step,
                    "test_accuracy": self.test_accuracy,
                    "sums": sums,
                },
                manifest={
                    "digest": self.config.train.digest(),
                    "data_sha256": self.data.sha256,
                    "world_size": self.world.size,
                    "metrics_bytes": self.tracker.synced_bytes(),
                    "versions": {"torch": torch.__version__},
                },
            )

    def log_train(self, lr: float, grad_norm: Tensor) -> None:
        """A row of means since the last row, and its times. Collective. Waits for the device, as only log steps do."""
        loss, correct, samples = distributed.total(self.sums, self.world).tolist()
        self.sums.zero_()
        if self.world.rank == 0:
            place = {"global_step": self.step, "epoch": self.epoch}
            row = {"loss": loss / samples, "accuracy": correct / samples, "lr": lr, "grad_norm": float(grad_norm)}
            self.tracker.log({"kind": "train", **place, **row, "samples": int(samples)})
            timing = self._timing(samples)
            self.tracker.log_timing({**place, **timing})
            left = (self.total_steps - self.step) * timing["step_time_s"]
            say(
                f"epoch {self.epoch}/{self.config.train.epochs}  step {self.step}/{self.total_steps}  "
                f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}  lr {lr:.4g}  "
                f"{timing['images_per_s']:,.0f} images/s  {left:.0f} s left"
            )
        self.clock.restart()

    def _timing(self, samples: float) -> dict[str, float]:
        seconds = time.perf_counter() - self.clock.begun
        steps = max(1, self.clock.steps)
        on_gpu = self.world.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "images_per_s": samples / seconds,
            "step_time_s": seconds / steps,
            "data_wait_s": self.clock.wait_s / steps,
            "peak_memory_mb": peak / 2**20,
            "elapsed_s": time.perf_counter() - self.clock.started,
        }

    def log_evaluation(self) -> None:
        """Evaluates on the test split and logs the row. Collective."""
        result = evaluate(
            self.model, self.data.splits["test"], self.batches, self.world, num_classes=len(self.data.classes),
            batch_size=max(64, self.config.micro_batch_size()), precision=self.config.train.precision,
        )
        self.test_accuracy = result.accuracy
        if self.world.rank == 0:
            place = {"split": "test", "global_step": self.step, "epoch": self.epoch}
            self.tracker.log({"kind": "eval", **place, "loss": result.loss, "accuracy": result.accuracy})
            say(f"epoch {self.epoch}/{self.config.train.epochs}  test loss {result.loss:.4f}  accuracy {result.accuracy:.4f}")
        self.clock.restart()

    def found_not_finite(self) -> Outcome | None:
        """The outcome of a run whose loss or gradient is not finite; the flag is the same on every rank."""
        if not self.not_finite.item():
            return None
        step = self.first_step + int(self.good_steps.item()) + 1
        return self._outcome(
            "failed", "nan", global_step=step, cause=f"the gradient of step {step} is not finite; no checkpoint holds it",
            hint="lower train.optimizer.lr or lengthen the warm-up, and look at the rows of metrics.jsonl before that step",
        )

    def stopped(self) -> Outcome:
        """Stopped after a checkpoint, to be continued; why, as far as the run directory and the clock tell."""
        if self.world.run.cancel.exists():
            return self._outcome("stopped", "cancelled", cause="cancelled by a person")
        late = self.world.deadline is not None and time.time() > self.world.deadline - 180
        verdict = "timeout" if late else "preempted"
        return self._outcome("stopped", verdict, cause="the time limit is near" if late else "asked to stop")

    def completed(self) -> Outcome:
        weights = distributed.unwrap(self.model).state_dict()
        return self._outcome("completed", "completed", weights_sha256=checkpoint.weights_sha256(weights))

    def _outcome(self, status: Any, verdict: Any, **details: Any) -> Outcome:
        known = {"global_step": self.step, "test_accuracy": self.test_accuracy, **details}
        return Outcome(status, verdict, self.world.attempt.id, f"trainer rank {self.world.rank}", **known)

    def finish(self, outcome: Outcome) -> None:
        """Rank 0 publishes the outcome, after which the attempt has ended whatever becomes of its processes."""
        if self.world.rank == 0:
            outcome.write(self.world.attempt.outcome)
            say(f"{outcome.status} ({outcome.verdict}) at step {outcome.global_step}" + (
                f", test accuracy {outcome.test_accuracy:.4f}" if outcome.test_accuracy is not None else ""))
            self.tracker.finish(outcome.exit_code)


def say(line: str) -> None:
    """One line in this rank's log."""
    print(line, flush=True)


def write_to_rank_log(world: World) -> None:
    """Sends standard output and error of this rank, native libraries' too, to its own file in the attempt's directory."""
    log = world.attempt.rank_log(world.rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def leave_evidence(run: RunDir, error: BaseException) -> None:
    """Writes what this rank saw, for the verdict: the earliest file over all ranks names the cause."""
    rank = distributed.rank_from_environment()
    evidence = {
        "rank": rank,
        "time": time.time(),
        "host": socket.gethostname(),
        "type": type(error).__name__,
        "message": str(error),
        "kinds": [c.__name__ for c in type(error).__mro__ if c not in (BaseException, object)],
        "step": watchdog.last_step(),
        "traceback": traceback.format_exception(error)[-6:],
        **watchdog.place(traceback.walk_tb(error.__traceback__)),
    }
    path = distributed.attempt_from_environment(run).rank_evidence(rank)
    with contextlib.suppress(OSError):  # the disk may be the cause: the end of the rank's log tells it
        if not path.exists():  # the watchdog's came first: this error is its effect
            write_json(path, evidence)
