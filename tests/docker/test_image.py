"""The trainer's image in a real engine: what is in it, how it runs unprivileged, how it stops and
how it rebuilds.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .engine import (
    CLIENT,
    ROOT,
    SECRET,
    TORCH,
    Engine,
    build_image,
    call,
    next_line,
    train_requirements,
    wait_for,
)

# How the launcher starts a run: any user, nothing to write to but /tmp, no network, no privileges.
HARDENED = [
    *(
        "--init",
        "--user=12345:23456",
        "--read-only",
        "--tmpfs=/tmp:exec",
        "--network=none",
        "--hostname=localhost",
    ),
    *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--shm-size=2g"),
]

UNPRIVILEGED = """
import getpass, os, pathlib, tempfile
import torch._inductor.runtime.cache_dir_utils as inductor
assert (os.getuid(), os.getgid()) == (12345, 23456)
assert getpass.getuser() == "batchyard"
pathlib.Path.home().joinpath("written").touch()
assert os.path.isdir(inductor.cache_dir())
for folder in ("/", "/opt/batchyard", "/opt/venv"):
    try:
        tempfile.TemporaryFile(dir=folder)
    except OSError:
        continue
    raise SystemExit(f"{folder} can be written to")
print("fine")
"""

RANKS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
# One write a line: an unbuffered print makes two, and the ranks share the pipe.
os.write(1, f"rank {dist.get_rank()} of {dist.get_world_size()}: {total.item()}\\n".encode())
dist.destroy_process_group()
"""

# Ends with 7 on TERM and would otherwise outlive the test's deadlines.
PATIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def container(engine: Engine, image: str, name: str) -> Iterator[subprocess.Popen]:
    """The docker client of a running container whose stdin is the client's, as the launcher starts
    it.
    """
    argv = [
        CLIENT,
        "run",
        "--interactive",
        f"--name={name}",
        *HARDENED,
        image,
        "python",
        "-c",
        PATIENT,
    ]
    with subprocess.Popen(
        argv, env=engine.env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        try:
            assert next_line(client.stdout) == "ready\n"
            yield client
        finally:
            client.kill()
            engine.docker("rm", "--force", name)


def exit_code(engine: Engine, name: str) -> int:
    """The exit code of a container that stops within a minute by itself."""

    def state() -> dict:
        return json.loads(engine.docker("inspect", "--format={{json .State}}", name))

    wait_for(lambda: not state()["Running"], 60, f"the end of {name}")
    return state()["ExitCode"]


def layers(engine: Engine, tag: str) -> list[str]:
    return json.loads(engine.docker("image", "inspect", "--format={{json .RootFS.Layers}}", tag))


@pytest.mark.docker
def test_image_has_what_the_trainer_imports(engine: Engine, image: str) -> None:
    code = (
        "import numpy, PIL, pydantic, sklearn, torch, wandb, yaml; print(torch.__version__,"
        " torch.version.cuda)"
    )
    said = engine.docker("run", "--rm", *HARDENED, image, "python", "-W", "error", "-c", code)
    assert said == f"{TORCH.partition('==')[2]} None\n"


@pytest.mark.docker
def test_launcher_and_project_source_are_not_in_the_image(engine: Engine, image: str) -> None:
    code = (
        "import importlib.util as u; print([u.find_spec(name) for name in ('launch', 'trainer',"
        " 'submitit')])"
    )
    assert (
        engine.docker("run", "--rm", *HARDENED, image, "python", "-c", code)
        == "[None, None, None]\n"
    )
    assert (
        engine.docker("run", "--rm", *HARDENED, image, "ls", "/opt/batchyard") == "entrypoint.py\n"
    )


@pytest.mark.docker
def test_image_runs_as_any_user_on_a_read_only_root(engine: Engine, image: str) -> None:
    assert engine.docker("run", "--rm", *HARDENED, image, "python", "-c", UNPRIVILEGED) == "fine\n"


@pytest.mark.docker
def test_torchrun_finds_its_ranks_without_a_network(
    engine: Engine, image: str, tmp_path: Path
) -> None:
    # pytest's folders are the owner's alone, and the container runs as somebody else.
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    (tmp_path / "ranks.py").write_text(RANKS)
    mount = f"--volume={tmp_path}:/snapshot:ro"
    torchrun = ["torchrun", "--standalone", "--nproc-per-node=2", "/snapshot/ranks.py"]
    said = engine.docker(
        "run",
        "--rm",
        *HARDENED,
        mount,
        "--env=PYTHONWARNINGS=error",
        image,
        *torchrun,
        timeout_s=180,
    )
    assert sorted(said.splitlines()) == ["rank 0 of 2: 3.0", "rank 1 of 2: 3.0"]


@pytest.mark.docker
def test_docker_stop_reaches_the_command(engine: Engine, image: str) -> None:
    with container(engine, image, "stopped") as client:
        engine.docker("stop", "--time=60", "stopped")
        assert client.wait(timeout=60) == 7


@pytest.mark.docker
def test_term_to_the_client_reaches_the_command(engine: Engine, image: str) -> None:
    with container(engine, image, "terminated") as client:
        client.terminate()
        assert client.wait(timeout=60) == 7


@pytest.mark.docker
def test_end_of_stdin_stops_the_container(engine: Engine, image: str) -> None:
    with container(engine, image, "left") as client:
        client.stdin.close()
        assert client.wait(timeout=60) == 7


@pytest.mark.docker
def test_killed_client_stops_the_container(engine: Engine, image: str) -> None:
    with container(engine, image, "orphaned") as client:
        client.kill()
        assert exit_code(engine, "orphaned") == 7


@pytest.mark.docker
def test_change_of_the_entrypoint_rebuilds_the_last_layer_alone(
    engine: Engine, image: str, secrets: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(ROOT / "docker", tmp_path / "docker")
    with (source / "entrypoint.py").open("a") as file:
        file.write("# a change\n")
    build_image(engine, tag="batchyard:changed", source=source, **secrets)
    before, after = layers(engine, image), layers(engine, "batchyard:changed")
    engine.docker("image", "rm", "batchyard:changed")
    # pip writes other times and other bytecode each time it runs, so equal layers are cached ones.
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


@pytest.mark.docker
def test_secrets_of_the_build_stay_out_of_the_image(
    engine: Engine, image: str, secrets: dict[str, Path]
) -> None:
    history = engine.docker("image", "history", "--no-trunc", "--format={{json .}}", image)
    config = engine.docker("image", "inspect", image)
    for words in (SECRET, *map(str, secrets.values())):
        assert words not in history + config
    # grep exits with 1 where nothing matches; what it cannot read would be 2.
    places = ["/etc", "/opt/batchyard", "/root", "/run", "/tmp", "/usr/local", "/var"]
    search = [
        "sh",
        "-c",
        f"grep --recursive --files-with-matches {SECRET} {' '.join(places)}; test $? = 1",
    ]
    assert engine.docker("run", "--rm", "--user=0", "--network=none", image, *search) == ""


@pytest.mark.docker
def test_environment_and_labels(engine: Engine, image: str) -> None:
    config = json.loads(engine.docker("image", "inspect", "--format={{json .Config}}", image))
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(
        config["Env"]
    )
    assert config["User"] == "1000:1000"
    assert config["Labels"]["org.opencontainers.image.title"] == "batchyard"


@pytest.mark.docker
def test_builds_without_an_imported_folder_of_wheels(
    engine: Engine, image: str, tmp_path: Path
) -> None:
    """An empty wheels image (scratch) mounts too; the install then fails for want of
    torch alone.
    """
    with pytest.raises(
        RuntimeError, match=re.escape(f"No matching distribution found for {TORCH}")
    ):
        build_image(engine, tag="batchyard:empty", WHEELS="", PIP_CONFIG_FILE=tmp_path / "none")


def test_no_address_in_the_docker_folder() -> None:
    for name in (
        "Dockerfile",
        "Dockerfile.dockerignore",
        "build",
        "constraints.txt",
        "entrypoint.py",
    ):
        text = (ROOT / "docker" / name).read_text()
        assert "://" not in text, name
        assert not re.search(r"\b[a-z0-9-]+\.(com|org|io|net|dev|ai)\b(?!\.)", text), name


def test_dockerfile_keeps_to_what_old_builders_read() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    for words in (r"^#\s*syntax\s*=", r"<<", r"sharing=locked", r"--network"):
        assert not re.search(words, text, re.MULTILINE), words


def test_image_installs_and_constrains_the_trainers_packages() -> None:
    wanted = {re.split(r"[<>=]", line)[0].lower() for line in train_requirements()}
    installed = re.search(r'"\$TORCH" (.+) \\\n', (ROOT / "docker" / "Dockerfile").read_text())
    assert installed is not None
    assert set(installed[1].lower().split()) == wanted
    lines = (ROOT / "docker" / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    assert wanted <= pinned
    assert "torch" not in pinned


def test_build_is_sound_shell() -> None:
    call(["bash", "-n", ROOT / "docker" / "build"])
    assert len((ROOT / "docker" / "build").read_text().splitlines()) < 60
