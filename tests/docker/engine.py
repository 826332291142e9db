"""A private docker engine for the tests, and the image built in it from this machine's own apt and
pip sources.
"""

import fcntl
import hashlib
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "batchyard:cpu"
BASE = "batchyard-base:debian"
TORCH = "torch==2.13.0+cpu"
# A private index's password and a company's certificate, as the build sees them: no trace of either
# may stay.
SECRET = "hunter2-is-not-in-the-image"
NEEDED = ("dockerd", "docker", "mmdebstrap")
# Debian's client has BuildKit inside; one that comes earlier on PATH may lack it.
CLIENT = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"
# Debian's own Python scripts, which mmdebstrap runs, do not live under warnings as errors; ours in
# the image do.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}


def missing() -> str | None:
    """What this machine lacks for a private engine, None where it lacks nothing."""
    if os.geteuid() != 0:
        return "a private docker engine needs root"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return f"not on PATH: {', '.join(lacking)}" if lacking else None


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Returns once the condition holds; raises TimeoutError after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(0.05)


def next_line(stream: IO[str], timeout_s: float = 60) -> str:
    """The next line of a process that writes no second one before it is answered; "" at the end of
    its output.
    """
    if not select.select([stream], [], [], timeout_s)[0]:
        raise TimeoutError(f"waited {timeout_s} s for a line")
    return stream.readline()


def call(
    argv: Sequence[str | Path], timeout_s: float = 120, env: Mapping[str, str] = ENVIRONMENT
) -> str:
    """The command's stdout; its argv, status and the end of its output stand in the error where it
    fails.
    """
    done = subprocess.run(argv, text=True, capture_output=True, timeout=timeout_s, env=env)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise RuntimeError(f"{' '.join(map(str, argv))}\nexited with {done.returncode}:\n{tail}")
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """A running engine: `env` is what a process needs to reach it, `state` a folder that its images
    share.
    """

    env: dict[str, str]
    state: Path

    def docker(self, *argv: str | Path, timeout_s: float = 120) -> str:
        return call([CLIENT, *argv], timeout_s, self.env)

    def has_image(self, tag: str) -> bool:
        return self.docker("image", "ls", "--quiet", tag).strip() != ""


@contextmanager
def private_engine() -> Iterator[Engine]:
    """An engine of its own socket and data, without bridge and firewall rules, gone without a trace
    at the end.

    Its images and the downloads stay in $TEST_DOCKER_STATE where that names a folder
    (tests/conftest.py clears what starts with BATCHYARD_).
    """
    # Unix sockets have short names, so the work folder is not below pytest's.
    with tempfile.TemporaryDirectory(prefix="by-docker-") as folder:
        work = Path(folder)
        state = Path(os.environ.get("TEST_DOCKER_STATE") or work / "state").absolute()
        state.mkdir(parents=True, exist_ok=True)
        with open(state / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"another engine runs on {state}; set another TEST_DOCKER_STATE"
                ) from None
            env = {**ENVIRONMENT, "DOCKER_HOST": f"unix://{work}/d.sock", "DOCKER": CLIENT}
            engine = Engine(env, state)
            daemon = _start(work, engine)
            try:
                yield engine
            finally:
                _stop(daemon, engine)


def _start(work: Path, engine: Engine) -> subprocess.Popen:
    """A daemon that answers; vfs, slow and large, is for file systems that refuse overlay2."""
    log = work / "dockerd.log"
    for driver in ("overlay2", "vfs"):
        argv = [
            "dockerd",
            f"--data-root={engine.state}/data",
            f"--exec-root={work}/exec",
            f"--pidfile={work}/d.pid",
        ]
        argv += [f"--host={engine.env['DOCKER_HOST']}", f"--storage-driver={driver}"]
        argv += ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        with log.open("a") as output:
            daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

        try:
            wait_for(
                lambda daemon=daemon: daemon.poll() is not None or _answers(engine),
                60,
                f"dockerd with {driver}",
            )
        except TimeoutError:
            daemon.kill()
            daemon.wait()
        if daemon.poll() is None:
            return daemon
    tail = "\n".join(log.read_text().splitlines()[-40:])
    raise RuntimeError(f"dockerd did not come up:\n{tail}")


def _answers(engine: Engine) -> bool:
    return (
        subprocess.run(
            [CLIENT, "version"], env=engine.env, capture_output=True, timeout=30
        ).returncode
        == 0
    )


def _stop(daemon: subprocess.Popen, engine: Engine) -> None:
    try:
        containers = engine.docker("ps", "--all", "--quiet").split()
        if containers:
            engine.docker("rm", "--force", "--volumes", *containers)
    finally:
        # TERM, since after KILL its containerd and its mounts would stay.
        daemon.terminate()
        try:
            daemon.wait(timeout=60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
            raise


def make_base(engine: Engine) -> None:
    """Imports a minimal Debian with python3 as BASE: no registry, this machine's apt sources and
    certificates.
    """
    if engine.has_image(BASE):
        return
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    sources = [Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources")]
    certificates = Path("/usr/local/share/ca-certificates")
    hooks = [f"copy-in {certificates} {certificates.parent}"] if certificates.is_dir() else []
    hooks += [
        'chroot "$1" update-ca-certificates',
        'rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/*',
    ]
    tar = engine.state / "base.tar"
    options = [f"--customize-hook={hook}" for hook in hooks]
    options += ["--variant=minbase", "--include=ca-certificates,python3"]
    call(
        ["mmdebstrap", *options, suite, tar, *(source for source in sources if source.exists())],
        timeout_s=600,
    )
    engine.docker("import", tar, BASE)
    tar.unlink()


def train_requirements() -> list[str]:
    """What the trainer imports, as pyproject.toml has it, torch left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    config = [
        line for line in project["dependencies"] if line.lower().startswith(("pydantic", "pyyaml"))
    ]
    return config + [
        line for line in project["optional-dependencies"]["train"] if not line.startswith("torch>")
    ]


def download_wheels(engine: Engine) -> Path:
    """A folder of wheels for the base's Python: torch's CPU build, the trainer's packages and all
    they need.
    """
    constraints = ROOT / "docker" / "constraints.txt"
    wanted = [TORCH, *train_requirements()]
    digest = hashlib.sha256("\n".join([*wanted, constraints.read_text()]).encode()).hexdigest()[:12]
    folder = engine.state / f"wheels-{digest}"
    if folder.is_dir():
        return folder
    say = 'import sys; print("%d.%d" % sys.version_info[:2])'
    version = engine.docker("run", "--rm", "--network=none", BASE, "python3", "-c", say).strip()
    unfinished = Path(tempfile.mkdtemp(prefix="wheels-", dir=engine.state))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        f"--python-version={version}",
        "--only-binary=:all:",
    ]
    call([*pip, f"--constraint={constraints}", f"--dest={unfinished}", *wanted], timeout_s=900)
    return unfinished.rename(folder)


def build_image(
    engine: Engine, tag: str = IMAGE, source: Path = ROOT / "docker", **env: str | Path
) -> None:
    """Builds the CPU image by `docker/build`, without an index, so that the wheels decide what is
    in it.
    """
    make_base(engine)
    wheels = download_wheels(engine)
    settings = {
        "CPU": "1",
        "TAG": tag,
        "BASE_IMAGE": BASE,
        "WHEELS": wheels,
        "PIP_NO_INDEX": "1",
    } | env
    call(
        [source / "build", "--progress=plain"],
        1200,
        engine.env | {k: str(v) for k, v in settings.items()},
    )
