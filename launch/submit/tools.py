"""The trainer's tools, run by a run's own Python with a run's own code."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from launch import environment
from launch.environment import Machine
from launch.errors import SubmitError
from launch.runs import frozen_code
from launch.spec import folders as spec_folders
from launch.spec.job import JobSpec
from launch.spec.site import Site
from launch.submit import snapshot, tools
from launch.submit.request import Request, resolve
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.lock import RENEW_S, Lock
from trainer.config.files.outcome import EXIT_WRONG


def python_has(python: str, module: str) -> bool:
    """Whether that Python can import `module` (found, not imported)."""
    if python == sys.executable:
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None  # a mere folder of that name is none
    code = (
        f"import importlib.util as i, sys; sys.exit(getattr(i.find_spec({module!r}), 'origin',"
        " None) is None)"
    )
    if not Path(python).exists():
        return False
    return subprocess.run([python, "-P", "-c", code], check=False).returncode == 0


def tool(
    run: RunDir, python: str, name: str, *arguments: str, needs: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m trainer.tools.<name> RUN_DIR/config.json` with the run's own code, as
    `tool_of` does.
    """
    if not run.plan.exists() and not run.code.exists():
        raise SubmitError(f"{run.run_id} has not begun: there is nothing of it yet")
    return tool_of(run.code, python, name, run.config, *arguments, needs=needs)


def tool_of(
    code: Path,
    python: str,
    name: str,
    config: Path,
    *arguments: str,
    needs: str,
    lock: Lock | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m trainer.tools.<name> config.json` with the code in a folder
    (frozen_code.on_path). needs: a module that it imports.

    lock: of this process, to be renewed meanwhile. Raises SubmitError: what the tool says to a
    person, or its last lines. Raises LockLost.
    """
    # earlier versions had the tools in trainer itself, and a run may be frozen with one
    module = frozen_code.module_of(code, f"trainer.tools.{name}", f"trainer.{name}")
    if module is None:
        raise SubmitError(
            f"the code that {config.parent.name} is frozen with ({code}) has no"
            f" trainer.tools.{name}: it is older, or gone"
        )
    if not tools.python_has(python, needs):
        raise SubmitError(
            f"{python} has no {needs}, which {module} needs: install the extra 'train' there,"
            " or name another `python:` in the site file"
        )
    argv = [python, "-P", "-m", module, str(config), *arguments]
    env = environment.environment(PYTHONPATH=str(frozen_code.on_path(code)), PYTHONSAFEPATH="1")
    result = _run(argv, env, lock)
    if result.returncode == EXIT_WRONG:  # a message for a person
        raise SubmitError(result.stderr.strip())
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-8:])
        raise SubmitError(f"{module} failed ({result.returncode}):\n  {' '.join(argv)}\n{tail}")
    return result


def _run(
    argv: list[str], env: dict[str, str], lock: Lock | None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, and renews a lock of this process meanwhile: a download may
    outlast its lease.

    Raises LockLost, once the command is killed.
    """
    with subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=RENEW_S)
                    return subprocess.CompletedProcess(argv, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    if lock is not None:
                        lock.renew()
        except BaseException:  # Ctrl-C too
            process.kill()
            raise


def ask_of_job(
    request: Request, job: JobSpec, machine: Machine, name: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m trainer.<name>` on a job's configuration before there is a run, with the
    project's code.

    Raises SubmitError, and SpecError.
    """
    config = resolve(request, job, machine).config
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        path = Path(folder) / "config.json"
        write_json(path, config.model_dump(mode="json"))
        snapshot.link_packages(Path(folder), request.project)
        return tool_of(
            Path(folder), spec_folders.python(request.site), name, path, *arguments, needs="torch"
        )


def python_of(run: RunDir, used: Site) -> str:
    """The Python that the run was submitted with; where it never was, the site's."""
    return str((read_json(run.plan) or {}).get("python") or spec_folders.python(used))
