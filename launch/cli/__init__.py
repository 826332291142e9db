"""The command `batchyard`.

Verbs are imported on use, so that --help, list, show and check load nothing heavy.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import io
import os
import sys

import click

from launch.errors import Failed, Wrong, of_the_system
from launch.text import echo
from trainer.config.files.lock import LockLost
from trainer.config.files.outcome import EXIT_FAILED, EXIT_WRONG

# verb -> (the file that holds it, its line in --help). In the order of a person's day.
VERBS = {
    "list": ("jobs", "the jobs of this project"),
    "show": ("jobs", "what a job would run, and where"),
    "check": ("jobs", "find every mistake in a job file; --deep: in its model and data too"),
    "summary": ("summary", "a job's model: layers, output shapes, parameters, FLOPs"),
    "data": ("data", "a job's data: classes, counts, a grid of pictures, one epoch read and timed"),
    "submit": ("submit", "run a job, or continue it"),
    "status": ("runs", "where the runs stand"),
    "why": ("runs", "why a run is where it is"),
    "logs": ("runs", "what a run printed"),
    "cancel": ("runs", "stop a run after a checkpoint"),
    "report": ("runs", "make a run's report page"),
    "results": (
        "results",
        "printed figures beside ours: reached, short of them, or not comparable",
    ),
    "predict": ("predict", "show pictures to a run's model"),
    "export": ("export", "a run's weights as safetensors, or its model as ONNX"),
    "replay": ("replay", "the step that was not finite, once more: which layer, which samples"),
    "clean": ("clean", "remove what finished runs no longer need, its size first"),
    "drill": ("drill", "kill a job many times and compare it with an undisturbed run"),
}


class Verbs(click.Group):
    """The group, whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = importlib.import_module(f"launch.cli.{VERBS[name][0]}")
        command: click.Command = getattr(module, f"{name}_")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, 1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; verbs: {', '.join(VERBS)}"
            raise click.UsageError(f"there is no verb '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="batchyard", message="batchyard %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Batch training jobs on a laptop, in a container, or on a Slurm cluster, from one
    YAML file.
    """
    if context.invoked_subcommand is None:  # click 8.1 would exit 0, later ones 2
        echo(context.get_help(), err=True)
        sys.exit(EXIT_WRONG)


class Message(io.StringIO):
    """Takes what click prints of a mistake: click drops escapes where there is no terminal."""

    def isatty(self) -> bool:
        return True


def main() -> None:
    """The entry point: a person's mistakes end with a message and exit code 2, failures with 1;
    neither with a traceback.
    """
    # the thousand specs of a sweep are no garbage, which would be looked for twenty times
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)  # and once more at the end
    try:
        cli(standalone_mode=False)
    except Wrong as error:
        echo(error.told(), err=True)
        sys.exit(EXIT_WRONG)
    except (Failed, LockLost) as error:
        echo(f"batchyard: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:  # `batchyard status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as error:
        echo(f"batchyard: {of_the_system(error)}", err=True)
        sys.exit(EXIT_WRONG if error.errno == errno.ENAMETOOLONG else EXIT_FAILED)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        message = Message()  # has what was typed, or pasted, as it is
        error.show(message)
        echo(message.getvalue(), err=True, nl=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
