"""The one training loop. `main` reads as a table of contents."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import mix, optim, parity, randomness, tasks
from trainer.batches.batches import Step
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig, TrainConfig
from trainer.evaluate import autocast
from trainer.guard import Guard
from trainer.prepared.arrays import load
from trainer.ranks import environment, faults, group, watchdog
from trainer.ranks.agreement import Agreement
from trainer.ranks.group import World
from trainer.state import Trainer


def main(config_path: str) -> None:
    """Trains the run that `config_path` (RUN_DIR/config.json) describes, from its newest checkpoint
    where it has one.
    """
    run = RunDir(Path(config_path).absolute().parent)
    try:
        config = RunConfig.model_validate_json(Path(config_path).read_text())
        world = group.start(config, run)
        write_to_rank_log(world)
        data = load(
            run,
            config.train.data.validation,
            environment.prepared_from_environment(),
            config.train.data.wanted(),
        )
        trainer = Trainer(config, world, data)
        trainer.restore()
        outcome = train(trainer)
        trainer.finish(outcome)
        # DDP's reducer goes before the process group: the other way round a rank aborts at its end,
        # one time in forty
        del trainer
        group.finish(world)
    except BaseException as error:
        leave_evidence(run, error)
        raise


def train(t: Trainer) -> Outcome:
    """The loop: from the step that was restored to the last one, or to the step at which all ranks
    agree to stop.
    """
    config, how, model, batches = t.config.train, t.config.execution, t.model, t.batches
    agreement = Agreement(t.world, how.checkpoint_every_min, t.reserve_s)
    agreement.listen()
    model.train()
    add_gradients = parity.InShardOrder(gradients, model, t.world) if config.parity else gradients
    while not t.is_over():
        waited = time.perf_counter()
        step = Step(t.step, batches.at(t.step))
        t.clock.waited(waited)
        faults.inject_fault(t.world, t.step, step.micro_batches[0].images)

        lr = optim.learning_rate(
            config.optimizer.lr, config.schedule, t.step, batches.steps_per_epoch, t.total_steps
        )
        optim.set_rate(t.optimizer, lr)
        add_gradients(model, step, config, t.world, t.guard, t.sums)
        grad_norm = t.guard.gradient_norm()
        if config.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(
                model.parameters(), config.clip_grad_norm, grad_norm
            )
        # does nothing, on the device, where the guard found a gradient that is not finite
        t.optimizer.step()
        t.guard.settle()
        # of several ranks, DDP's buckets are the gradients' memory
        t.optimizer.zero_grad(set_to_none=t.world.size == 1)
        t.step += 1
        watchdog.step(t.step)
        t.update_average()

        step_of_epoch, is_best = t.step % batches.steps_per_epoch, False  # zero is its end
        end_of_epoch = step_of_epoch == 0 or t.step == t.total_steps
        # rows of all epochs are means over the same steps of it
        if step_of_epoch % how.log_every_steps == 0 or end_of_epoch:
            t.log_train(lr, grad_norm)
        if end_of_epoch and (
            t.epoch % config.evaluate_every_epochs == 0 or t.step == t.total_steps
        ):
            is_best = t.log_evaluation()
            outcome = t.found_not_finite() if t.evaluated_not_finite else None
            if outcome:  # the weights are why, and further steps would not change them
                return outcome
        stop, due = agreement()
        stop = stop or t.pruned or t.step == how.stop_after_step
        due = due or (
            how.checkpoint_every_steps is not None and t.step % how.checkpoint_every_steps == 0
        )
        if stop or due or is_best or t.is_over():
            if outcome := t.found_not_finite():
                return outcome
            t.save(best=is_best, last=stop or t.is_over())
        if stop and not t.is_over():
            return t.stopped()
    return t.completed()


def gradients(
    model: nn.Module,
    step: Step,
    config: TrainConfig,
    world: World,
    guard: Guard,
    sums: Tensor,
) -> None:
    """Adds the gradient of the mean loss over all samples of the step, over all ranks, to the
    parameters' `.grad`.

    DDP averages over ranks, so each rank's loss is world_size * (sum over its samples) / (samples
    of the step). The expected gradient is the same for any number of ranks. sums: float64 [3],
    gains (loss sum, correct, samples) of this rank.
    """
    task = tasks.of(config)
    for i, batch in enumerate(step.micro_batches):
        with group.reduction(model, on=i == len(step.micro_batches) - 1):
            # no samples in this round: take part in the reduction at weight zero
            if batch.chunk is None:
                model.eval()  # leaves BatchNorm's buffers alone
                (model(batch.images).float().sum() * 0.0).backward()
                model.train()
                continue
            randomness.seed_dropout(config.seed, step.number, batch.chunk, world.device)
            images, labels, parts = mix.mixed(
                batch.images, batch.labels, config, step.number, batch.chunk
            )
            with autocast(config.precision, world.device):
                outputs = model(images)
            losses = [
                task.loss(outputs.float(), some, config, label_smoothing=config.label_smoothing)
                for some in labels
            ]
            loss_sum = mix.weighted(losses, parts)
            loss_sum.backward(
                guard.scaled(constant(world.size / batch.global_samples, world.device))
            )
            correct = (
                task.right(outputs.detach(), batch.labels)
                if task.right
                else constant(0.0, world.device)
            )
            sums += torch.stack(
                (loss_sum.detach(), correct, constant(float(len(batch.labels)), world.device))
            )


@functools.lru_cache(maxsize=1024)
def constant(value: float, device: torch.device) -> Tensor:
    """float32 [], made once: a copy from the host would make a GPU wait."""
    return torch.tensor(value, device=device)


def write_to_rank_log(world: World) -> None:
    """Sends standard output and error of this rank, native libraries' too, to its own file in the
    attempt's directory.
    """
    log = world.attempt.rank_log(world.rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def leave_evidence(run: RunDir, error: BaseException) -> None:
    """Writes what this rank saw, for the verdict: the earliest file over all ranks
    names the cause.
    """
    rank = environment.rank_from_environment()
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
    path = environment.attempt_from_environment(run).rank_evidence(rank)
    # the disk may be the cause: the end of the rank's log tells it
    with contextlib.suppress(OSError):
        if not path.exists():  # the watchdog's came first: this error is its effect
            write_json(path, evidence)
