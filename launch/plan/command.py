"""The command line of a plan: torchrun, and docker around it."""

from __future__ import annotations

from launch.plan.placement import ONE_NODE, Destination, Placement
from trainer.config.files.layout import RunDir

# what torchrun waits for its ranks' checkpoint before it kills them; its own default of 30 s has
# lost some
SHUTDOWN_S = 120


def torchrun_argv(python: str, placement: Placement, run: RunDir) -> list[str]:
    rendezvous = (
        [*ONE_NODE]
        if placement.nodes == 1
        else [
            f"--nnodes={placement.nodes}",
            "--node-rank={NODE_RANK}",
            "--master-addr={MASTER_ADDR}",
            "--master-port={MASTER_PORT}",
        ]
    )
    return [
        python,
        "-m",
        "torch.distributed.run",
        *rendezvous,
        f"--nproc-per-node={placement.nproc_per_node}",
        "--max-restarts=0",
        "-m",
        "trainer",
        str(run.config),
    ]


def docker_argv(
    run: RunDir,
    to: Destination,
    placement: Placement,
    env: dict[str, str],
    image: str,
    before: str | None,
) -> list[str]:
    """`docker run`.

    Directories are mounted at their host paths. -i: the entrypoint stops when our end of stdin
    closes.

    before: the run whose weights it begins with.
    """
    docker = to.site.docker
    variables = {**env, "BATCHYARD_ATTEMPT": "{ATTEMPT}", "HOME": "/tmp"}
    gpus = [f"--gpus={placement.nproc_per_node}"] if placement.device == "cuda" else []
    return [
        docker.client,
        "run",
        "--rm",
        "--interactive",
        "--init",
        f"--name={run.run_id}",
        f"--label=batchyard.run={run.run_id}",
        f"--network={docker.network}",
        # of what asks for the machine's name all the same, where there is no network that would
        # know it
        *(["--hostname=localhost"] if docker.network == "none" else []),
        f"--user={to.user[0]}:{to.user[1]}",
        f"--shm-size={docker.shm_size}",
        "--read-only",
        "--tmpfs=/tmp:exec",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        *gpus,
        *(f"--env={name}={value}" for name, value in variables.items()),
        _mount(run.path),
        _mount(run.code, readonly=True),
        _mount(to.folders.cache, readonly=True),
        *([_mount(run.path.parent / before, readonly=True)] if before else []),
        f"--workdir={run.path}",
        image,
        *torchrun_argv("python", placement, run),
    ]


def _mount(path: object, *, readonly: bool = False) -> str:
    fields = ["type=bind", f"source={path}", f"target={path}"] + (["readonly"] if readonly else [])
    # --mount takes CSV, so that a comma or a quote in a path stays what it is
    return "--mount=" + ",".join(
        f'"{f.replace(chr(34), chr(34) * 2)}"' if set(f) & set(',"') else f for f in fields
    )
