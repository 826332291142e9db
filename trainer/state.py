"""What the training loop works on: the model and all state of a run, and how they are restored,
evaluated, logged and saved.
"""

from __future__ import annotations

import math
import resource
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer import freeze, models, optim, randomness, tasks
from trainer.batches import loader
from trainer.checkpoints import files
from trainer.checkpoints.writer import Writer
from trainer.config import steps
from trainer.config.files.json_files import finite_or_none, write_json
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig
from trainer.config.weights import Weights
from trainer.evaluate import EvaluationSet, evaluate
from trainer.guard import Guard
from trainer.output import figures
from trainer.output.tracking import Tracker
from trainer.prepared.arrays import Prepared
from trainer.ranks import group, machine
from trainer.ranks.environment import say
from trainer.ranks.group import World
from trainer.tasks import Evaluation
from trainer.weights import load

if TYPE_CHECKING:
    from trainer import search

RESERVE_S = 30.0  # before the deadline, at least


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
    """What the loop works on: the model and all state of a run, and how they are logged, saved and
    restored.
    """

    def __init__(self, config: RunConfig, world: World, data: Prepared) -> None:
        self.config, self.world, self.data = config, world, data
        train = config.train
        given = train.data.pictures()
        self.picture = (given.channels, given.height, given.width)  # what the model is given
        randomness.seed_everything(train.seed)
        bare = models.build(
            train.model, len(data.classes), given.channels, self.picture[1:], train.init
        ).to(world.device)
        if train.channels_last:
            bare = bare.to(memory_format=torch.channels_last)
        freeze.apply(bare, train.freeze, batch_norm=train.freeze_batch_norm)
        self.optimizer = optim.build(bare, train)
        self.guard = Guard(bare, self.optimizer, train.precision, world.device)
        self.average = optim.Average(bare, train.ema_decay) if train.ema_decay else None
        self.initial = {k: v.clone() for k, v in bare.state_dict().items()}
        if train.compile:
            bare.compile()  # in place: the names of the weights stay what they are
        self.model = bare if train.parity else group.wrap(bare, world)
        self.batches = loader.build(data, config, world)
        self.total_steps = steps.total(self.batches.steps_per_epoch, train.epochs, train.max_steps)
        self.step = 0
        self.test_accuracy: float | None = None
        # all figures of the newest evaluation on the test split
        self.test_metrics: dict[str, float | None] = {}
        # samples of that evaluation whose outputs are not finite: then it has no figure
        self.test_not_finite = 0
        # the newest evaluation of some split; the same on every rank
        self.evaluated_not_finite = False
        self.best: dict[str, Any] | None = None  # of the validation split: where and how good
        self.evaluations_since_best = 0
        self.pruned = False  # by the search that it is a trial of; the same on every rank
        self.judge: search.Judge | None = None
        # loss, correct, samples since the last row
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self.clock = Clock()
        self.tracker: Tracker | None = None
        self.writer = Writer(world.run, world.attempt) if world.rank == 0 else None
        self.first_step = 0
        self.evaluation_s = 0.0  # the newest one

    @property
    def epoch(self) -> int:
        """The epoch that the last step belongs to; 1 is the first."""
        return -(-self.step // self.batches.steps_per_epoch)

    def restore(self) -> None:
        """Continues from the newest whole checkpoint, or starts from the initial weights; all ranks
        from the same one.
        """
        self._warm_up()
        found = None
        if self.world.rank == 0:  # it decides for all
            found, complaints = files.load_newest(self.world.run)
            for line in files.tidy(self.world.run, found, complaints):
                say(line)
        chosen = group.from_rank_0(found.path.name if found else None, self.world)
        if chosen and self.world.rank:
            found = files.load(self.world.run.checkpoints / chosen)
        if found:
            self._load(found)
        else:
            if self.config.train.weights:
                self._begin_with(self.config.train.weights)
            self._load_weights(self.initial, self.initial if self.average else None)
            self.guard.keep_buffers()
        self.first_step = self.step
        if self.world.rank == 0:
            hardware = {
                "device": self.world.device.type,
                "name": machine.name_of(self.world.device),
            }
            with suppress(OSError):  # a full disk stops nothing
                write_json(self.world.attempt.hardware, hardware)
            self.tracker = Tracker(
                self.config, self.world, found.manifest["metrics_bytes"] if found else 0
            )
            say(
                f"{self.config.run_id} {self.world.attempt.id}: {self.world.size} rank(s) on"
                f" {hardware['name']}, step {self.step} of {self.total_steps}"
                + (f", continued from {found.path.name}" if found else "")
            )
            samples = "rows" if self.config.train.data.task == "regression" else "pictures"
            say(f"the train {samples} {self.batches.where}")
            if self.data.skipped:
                say(
                    f"{self.data.skipped} picture(s) cannot be used and are left out;"
                    f" {self.world.run.data_record} names them"
                )
            if not found:
                figures.write_samples(self.world.run, self.data, self.batches, self.batches.at(0))
                figures.write_augmentations(self.world.run, self.data, self.config.train)

    def _begin_with(self, weights: Weights) -> None:
        """Lays the weights of another training over the initial ones."""
        source, found = load.load_for(self.world.run, weights)
        new = optim.head(group.unwrap(self.model)) if weights.head == "new" else []
        laid = load.lay_over(self.initial, found, new)
        if self.world.rank == 0:
            say(
                f"begins with the weights of {source}"
                + (f", but for a new {' and '.join(new)}" if new else "")
                + (f"; without '{laid.prefix}' before the names" if laid.prefix else "")
                + (f"; the model has no use for {', '.join(laid.unused)}" if laid.unused else "")
            )

    def _warm_up(self) -> None:
        """Two throw-away passes: DDP rebuilds its buckets after the first, and would sum a
        continued run's first step in another order than the undisturbed run did. The state is
        loaded afterwards. Parity has no DDP.
        """
        images = torch.zeros((2, *self.picture), device=self.world.device)
        for _ in range(2 if self.world.size > 1 and not self.config.train.parity else 0):
            self.model(images).sum().backward()
        self.optimizer.zero_grad(set_to_none=False)

    def _load(self, found: files.Checkpoint) -> None:
        manifest = found.manifest
        for what, now in (
            ("digest", self.config.train.digest()),
            ("data_sha256", self.data.sha256),
        ):
            if manifest[what] != now:
                raise ValueError(
                    f"{found.path.name} was written with another {what}: {manifest[what]}, now"
                    f" {now}"
                )
        state = found.trainer
        self._load_weights(
            found.weights if self.average is None else state["model"],
            found.weights if self.average else None,
        )
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        self.step, self.test_accuracy = state["global_step"], state["test_accuracy"]
        self.best, self.evaluations_since_best = state["best"], state["evaluations_since_best"]
        # of a version that took NaN for a value
        if self.best and not math.isfinite(self.best["value"]):
            self.best = None
        # checkpoints before it were of classifications, which need it not
        self.test_metrics = state.get("test_metrics", {})
        self.test_not_finite = state.get("test_not_finite", 0)
        sums = state["sums"]  # one a rank, so that the next row adds them in the same order
        if len(sums) == self.world.size:
            self.sums.copy_(sums[self.world.rank])
        else:
            if self.world.rank == 0:
                self.sums.copy_(torch.stack(sums).sum(0))  # with parity rank 0 had them all
                exact = (
                    "the same bits (train.parity)"
                    if self.config.train.parity
                    else "no longer bit-exact"
                )
                say(f"written by {len(sums)} rank(s), continued by {self.world.size}: {exact}")

    def _load_weights(self, weights: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        group.unwrap(self.model).load_state_dict(weights)
        if self.average is not None and average is not None:
            self.average.model.load_state_dict(average)

    def result(self) -> torch.nn.Module:
        """The model that is evaluated and kept: the average of the weights where there is one."""
        return self.average.model if self.average else group.unwrap(self.model)

    def update_average(self) -> None:
        """After an update that was refused, the average stays as it is."""
        if self.average is not None:
            self.average.update(self.step, self.guard.bad)

    def reserve_s(self) -> float:
        """How long before the deadline to stop: twice what the newest checkpoint took, and an
        evaluation, in which nobody stops.
        """
        save_s = (self.writer.last_save_s if self.writer else None) or 0.0
        return max(RESERVE_S, 2 * save_s + self.evaluation_s)

    def save(self, *, best: bool = False, last: bool = False) -> None:
        """Begins a checkpoint of this step, to be found as the best one too; `finish` waits for it.

        Collective.
        """
        sums = group.gather(self.sums, self.world)
        if self.world.rank == 0:
            self.writer.save(
                self.step,
                weights=self.result().state_dict(),
                trainer={
                    "model": group.unwrap(self.model).state_dict() if self.average else None,
                    "optimizer": self.optimizer.state_dict(),
                    "guard": self.guard.state_dict(),
                    "global_step": self.step,
                    "test_accuracy": self.test_accuracy,
                    "test_metrics": self.test_metrics,
                    "test_not_finite": self.test_not_finite,
                    "best": self.best,
                    "evaluations_since_best": self.evaluations_since_best,
                    "sums": sums,
                },
                manifest={
                    "digest": self.config.train.digest(),
                    "data_sha256": self.data.sha256,
                    "world_size": self.world.size,
                    "metrics_bytes": self.tracker.metrics.length(),
                    "versions": {"torch": torch.__version__},
                },
                best=best,
                last=last,
            )

    def log_train(self, lr: float, grad_norm: Tensor) -> None:
        """A row of means since the last row, and its times.

        Collective. Waits for the device, as only log steps do.
        """
        loss, correct, samples = group.total(self.sums, self.world).tolist()
        self.sums.zero_()
        if self.world.rank == 0:
            place = {"global_step": self.step, "epoch": self.epoch}
            # outputs that are not finite make a loss that is not, and their argmax is no accuracy
            accuracy = correct / samples if math.isfinite(loss) else None
            right = {"accuracy": accuracy} if tasks.of(self.config.train).right else {}
            row = finite_or_none(
                {"loss": loss / samples, **right, "lr": lr, "grad_norm": float(grad_norm)}
            )
            self.tracker.log({"kind": "train", **place, **row, "samples": int(samples)})
            timing = self._timing(samples)
            self.tracker.log_timing({**place, "total_steps": self.total_steps, **timing})
            left = (self.total_steps - self.step) * timing["step_time_s"]
            say(
                f"epoch {self.epoch}/{self.config.train.epochs}  step"
                f" {self.step}/{self.total_steps}  {told(row['loss'], right)}  lr {lr:.4g} "
                f" {timing['images_per_s']:,.0f} images/s  {left:.0f} s left"
            )
        self.clock.restart()

    def _timing(self, samples: float) -> dict[str, float]:
        seconds = time.perf_counter() - self.clock.begun
        steps = max(1, self.clock.steps)
        on_gpu = self.world.device.type == "cuda"
        peak = (
            torch.cuda.max_memory_allocated()
            if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "images_per_s": samples / seconds,
            "step_time_s": seconds / steps,
            "data_wait_s": self.clock.wait_s / steps,
            "peak_memory_mb": peak / 2**20,
            "elapsed_s": time.perf_counter() - self.clock.started,
        }

    def log_evaluation(self) -> bool:
        """Evaluates on the validation split, where there is one, and on the test split; of a table
        on its train rows too, as the books print it: they are few. Collective.

        Returns whether this is the best evaluation so far, which only a validation split can say.
        """
        begun = time.monotonic()
        splits = (
            ("train", "val", "test")
            if self.config.train.data.task == "regression"
            else ("val", "test")
        )
        results = {split: self._evaluate(split) for split in splits if split in self.data.splits}
        self.test_metrics = {"loss": results["test"].loss, **results["test"].metrics}
        self.test_accuracy = self.test_metrics.get("accuracy")
        self.test_not_finite = results["test"].not_finite
        self.evaluated_not_finite = any(result.loss is None for result in results.values())
        if self.world.rank == 0:
            for split, result in results.items():
                self._log_evaluation(split, result)
        self.evaluation_s = time.monotonic() - begun
        self.clock.restart()
        if "val" not in results:
            return False
        is_best = self._is_best(results["val"])
        if self.config.trial:
            self.pruned = group.from_rank_0(
                self.world.rank == 0 and self._is_losing(results["val"]), self.world
            )
        return is_best

    def _evaluate(self, split: str) -> Evaluation:
        model = self.result() if self.average else self.model
        data = EvaluationSet(
            self.data.splits[split],
            num_classes=len(self.data.classes),
            batch_size=max(64, self.config.micro_batch_size()),
        )
        return evaluate(model, data, self.batches, self.world, self.config.train)

    def _log_evaluation(self, split: str, result: Evaluation) -> None:
        place = {"split": split, "global_step": self.step, "epoch": self.epoch}
        spoilt = {"not_finite": result.not_finite} if result.not_finite else {}
        self.tracker.log({"kind": "eval", **place, "loss": result.loss, **result.metrics, **spoilt})
        figures.write_evaluation(self.world.run, self.data, split, result, self.step, self.epoch)
        say(
            f"epoch {self.epoch}/{self.config.train.epochs}  {split}"
            f" {told(result.loss, result.metrics)}"
        )
        if result.not_finite:
            samples = len(self.data.splits[split])
            say(
                f"the outputs of {result.not_finite} of {samples} {split} samples are not finite:"
                " no figure is of this evaluation"
            )

    def _is_losing(self, result: Evaluation) -> bool:
        """Whether the search stops this trial. Rank 0 alone calls it."""
        if self.judge is None:
            from trainer import search  # and with it optuna, which only a search needs

            self.judge = search.Judge(self.config, self.world.run)
        return self.judge.is_losing(self.epoch, self._value(result), over=self.is_over())

    def _value(self, result: Evaluation) -> float | None:
        """What the best checkpoint, early stopping and a search go by; None where it is
        not finite.
        """
        metric = self.config.train.best_metric
        return result.loss if metric == "loss" else result.metrics[metric]

    def _is_best(self, result: Evaluation) -> bool:
        metric, stopping = self.config.train.best_metric, self.config.train.early_stopping
        value = self._value(result)
        margin = stopping.min_delta if stopping else 0.0
        if value is None:  # never the best one, and one more that is no better
            self.evaluations_since_best += 1
            return False
        gain = (
            0.0
            if self.best is None
            else (value - self.best["value"]) * (-1 if metric == "loss" else 1)
        )
        if self.best is not None and not gain > margin:
            self.evaluations_since_best += 1
            return False
        self.evaluations_since_best = 0
        place = {"split": "val", "metric": metric, "value": value, "global_step": self.step}
        self.best = {**place, "test_accuracy": self.test_accuracy}
        return True

    def is_over(self) -> bool:
        """Whether all steps are done, or no validation has been better for as long as
        `early_stopping` waits.
        """
        return self.step >= self.total_steps or self.stopped_early()

    def stopped_early(self) -> bool:
        stopping = self.config.train.early_stopping
        return stopping is not None and self.evaluations_since_best >= stopping.patience_evaluations

    def found_not_finite(self) -> Outcome | None:
        """The outcome of a run whose loss or gradient is not finite; the flag is the same on every
        rank.
        """
        if not self.guard.spoilt():
            return None
        step = self.first_step + self.guard.good_steps() + 1
        cause = f"the gradient of step {step} is not finite; no checkpoint holds it"
        # every gradient was finite, an update was not: the next step would show it
        if step > self.step:
            cause = (
                f"the update of step {self.step} made weights that are not finite; no checkpoint"
                " holds them"
            )
        kept = self.world.rank == 0 and self._keep_for_replay(step)
        return self._outcome(
            "failed",
            "nan",
            global_step=min(step, self.step),
            cause=cause,
            hint=(
                f"`batchyard replay {self.config.run_id}` names the layer and the samples; "
                if kept
                else ""
            )
            + "then lower train.optimizer.lr, lengthen the warm-up, or set train.clip_grad_norm",
        )

    def _keep_for_replay(self, step: int) -> bool:
        """Keeps the weights from before `step`, which the guard has left as they were; whether the
        disk took them.
        """
        path, weights = self.world.attempt.not_finite, group.unwrap(self.model).state_dict()
        try:
            torch.save({"weights": weights, "global_step": step}, path)
        # torch hides some errors of the disk behind its own
        except (OSError, RuntimeError) as error:
            say(f"{path.name} not written, replay cannot help: {error}")
            path.unlink(missing_ok=True)
            return False
        return True

    def stopped(self) -> Outcome:
        """Stopped after a checkpoint, to be continued; why, as far as the search, the run directory
        and the clock tell.
        """
        if self.pruned:
            part = f"1/{self.config.trial.halving.reduction_factor}"
            cause = (
                f"after epoch {self.epoch} it was not among the best {part} of its search's trials"
                " that came so far"
            )
            return self._outcome("stopped", "pruned", cause=cause)
        if self.world.run.cancel.exists():
            return self._outcome("stopped", "cancelled", cause="cancelled by a person")
        late = self.world.deadline is not None and time.time() > self.world.deadline - max(
            180, 2 * self.reserve_s()
        )
        verdict = "timeout" if late else "preempted"
        return self._outcome(
            "stopped", verdict, cause="the time limit is near" if late else "asked to stop"
        )

    def completed(self) -> Outcome:
        return self._outcome(
            "completed",
            "completed",
            weights_sha256=files.weights_sha256(self.result().state_dict()),
        )

    def _outcome(self, status: Any, verdict: Any, **details: Any) -> Outcome:
        extra: dict[str, Any] = {"best": self.best} if self.best else {}
        if self.data.skipped:
            extra["skipped_pictures"] = self.data.skipped
        if self.stopped_early():
            extra["early_stopped"] = True
        if self.test_not_finite:
            extra["test_not_finite"] = self.test_not_finite
        if self.config.train.data.task != "classification":
            extra |= {
                f"test_{name}": value
                for name, value in self.test_metrics.items()
                if name != "accuracy"
            }
        if status == "completed" and (
            fit := tasks.linear_fit(self.result(), self.data, self.config.train)
        ):
            extra["linear_fit"] = fit
        known = {
            "global_step": self.step,
            "test_accuracy": self.test_accuracy,
            "extra": extra,
            **details,
        }
        return Outcome(
            status, verdict, self.world.attempt.id, f"trainer rank {self.world.rank}", **known
        )

    def finish(self, outcome: Outcome) -> None:
        """Rank 0 publishes the outcome, after which the attempt has ended whatever becomes of its
        processes.
        """
        if self.world.rank == 0:
            self.writer.wait()  # an outcome promises that its checkpoint is on the disk
            if self.writer.problem:
                outcome = outcome.without_checkpoint(self.writer.problem)
            outcome.write(self.world.attempt.outcome)
            if fit := outcome.extra.get("linear_fit"):
                say(tasks.told_fit(fit))
            say(
                f"{outcome.status} ({outcome.verdict}) at step {outcome.global_step}"
                + (
                    f", test accuracy {outcome.test_accuracy:.4f}"
                    if outcome.test_accuracy is not None
                    else ""
                )
            )
            self.tracker.finish(outcome.exit_code)


def told(loss: float | None, metrics: dict[str, float | None]) -> str:
    """A loss and what else was measured, for a line of the log."""
    parts = {"loss": "not finite"}
    if loss is not None:
        # a regression's may be far below one
        parts["loss"] = f"{loss:.4f}" if loss == 0 or loss >= 1e-2 else f"{loss:.2e}"
    for name, value in metrics.items():
        parts[name.replace("_", " ")] = "not finite" if value is None else f"{value:.4f}"
    return "  ".join(f"{name} {value}" for name, value in parts.items())
