"""Locks: one holder at a time, though many take a dead one over, are killed, or sleep too long."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import old_version
from tests.cli import PROJECT, wait_for
from trainer.config.files import lock
from trainer.config.files.json_files import write_json
from trainer.config.files.lock import Lock, LockLost

AT_ONCE: dict[str, float] = {"settle_s": 0.0}  # only an older version's process needs the wait
TMPFS = Path("/dev/shm")


class Taker:
    """A process that takes locks when it is told to."""

    def __init__(self, code: Path, mode: str) -> None:
        argv = [sys.executable, str(PROJECT / "tests/lock_taker.py"), str(code), mode]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_version.extract(tmp_path_factory.mktemp("old") / "project")


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def leave_dead(path: Path, pid: int, number: int = 0) -> None:
    """A lock whose holder is dead: of older code, of this, of another machine, cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    of_this_machine = {**lock.me(), "pid": pid, "start": 1, "attempt": f"local-{number}"}
    elsewhere = {**lock.me(), "boot": "another", "attempt": f"slurm-{number}"}
    kind = number % 4
    if kind == 3:
        path.write_bytes(b"")
    else:
        write_json(
            path,
            (of_this_machine, {**of_this_machine, "nonce": f"{number:016x}"}, elsewhere)[kind],
            sync=False,
        )
    if kind == 2:
        long_ago = time.time() - lock.LEASE_S - 1
        os.utime(path, (long_ago, long_ago))


def contend(
    folder: Path, takers: list[tuple[Taker, dict[str, float]]], dead_pid: int, rounds: int
) -> Counter[int]:
    """How many rounds had how many holders at once; in each, all processes want one dead lock."""
    holders = Counter[int]()
    for number in range(rounds):
        path = folder / str(number) / "lock.json"
        leave_dead(path, dead_pid, number)
        go = time.time() + 0.003
        for taker, settings in takers:
            taker.tell(path=str(path), go=go, settings=settings)
        holders[sum(taker.answer() == "1" for taker, _ in takers)] += 1
        for taker, _ in takers:
            taker.tell(free=True)
        for taker, _ in takers:
            assert taker.answer() == "freed"
        assert os.listdir(path.parent) == []
        path.parent.rmdir()
    return holders


@pytest.mark.parametrize("many", [2, 3])
def test_a_dead_lock_goes_to_one_of_many_processes(
    tmp_path: Path, dead_pid: int, many: int
) -> None:
    """Without nonces both of two got it in 29 to 63 of 400 rounds, two of three in 108 to 113."""
    takers = [Taker(PROJECT, "rounds") for _ in range(many)]
    assert contend(tmp_path, [(taker, AT_ONCE) for taker in takers], dead_pid, 60) == {1: 60}
    for taker in takers:
        taker.end()


def test_an_older_versions_process_and_new_ones_exclude_each_other(
    tmp_path: Path, old: Path, dead_pid: int
) -> None:
    takers = [
        (Taker(old, "rounds"), {}),
        (Taker(PROJECT, "rounds"), {}),
        (Taker(PROJECT, "rounds"), {}),
    ]
    assert contend(tmp_path, takers, dead_pid, 8) == {1: 8}
    for taker, _ in takers:
        taker.end()


@pytest.mark.long
@pytest.mark.parametrize("where", ["disk", "tmpfs"])
@pytest.mark.parametrize("many", [2, 3, 5])
def test_thousands_of_dead_locks_have_one_holder_each(
    tmp_path: Path, dead_pid: int, where: str, many: int
) -> None:
    folder = tmp_path if where == "disk" else TMPFS / f"batchyard-{os.getpid()}-{many}"
    takers = [Taker(PROJECT, "rounds") for _ in range(many)]
    assert contend(folder, [(taker, AT_ONCE) for taker in takers], dead_pid, 500) == {1: 500}
    for taker in takers:
        taker.end()
    folder.rmdir()
    tmp_path.mkdir(exist_ok=True)


@pytest.mark.long
@pytest.mark.parametrize("where", ["disk", "tmpfs"])
@pytest.mark.parametrize("new", [1, 2])
def test_hundreds_of_dead_locks_beside_an_older_versions_process(
    tmp_path: Path, old: Path, dead_pid: int, where: str, new: int
) -> None:
    folder = tmp_path if where == "disk" else TMPFS / f"batchyard-{os.getpid()}-old-{new}"
    takers = [(Taker(old, "rounds"), {}), *((Taker(PROJECT, "rounds"), {}) for _ in range(new))]
    assert contend(folder, takers, dead_pid, 300) == {1: 300}
    for taker, _ in takers:
        taker.end()
    folder.rmdir()
    tmp_path.mkdir(exist_ok=True)


def take_and_die(taker: Taker, path: Path, point: int) -> bool:
    """Takes the lock in a process that is killed before that call; whether it came to that."""
    settings = {"lease_s": 60.0, "settle_s": 0.0}
    taker.tell(
        path=str(path), settings=settings, point=point, signal=signal.SIGKILL, elsewhere=False
    )
    pid = int(taker.answer())
    said = path.with_name(f"{path.name}.said")
    wait_for("the taker", lambda: lock.start_ticks(pid) is None)
    if not said.exists():
        return True
    said.unlink()
    return False


def takes_and_frees(path: Path) -> None:
    """The lock can be taken, once, and nothing that anybody took it with is left."""
    mine = Lock(path, settle_s=0.0)
    assert mine.acquire() and not Lock(path).acquire()
    mine.verify()
    mine.release()
    assert all(name.startswith(f".{path.name}.mine.") for name in os.listdir(path.parent)), (
        os.listdir(path.parent)
    )


def test_a_process_killed_at_any_point_of_taking_a_lock_over_is_in_nobodys_way(
    tmp_path: Path, dead_pid: int
) -> None:
    taker = Taker(PROJECT, "points")
    for point in itertools.count(1):
        path = tmp_path / str(point) / "lock.json"
        leave_dead(path, dead_pid)
        if not take_and_die(taker, path, point):
            break
        takes_and_frees(path)
    assert point > 20  # it was killed at more than twenty
    taker.end()


@pytest.mark.long
def test_two_processes_killed_at_any_points_are_in_nobodys_way(
    tmp_path: Path, dead_pid: int
) -> None:
    taker = Taker(PROJECT, "points")
    killed = 0
    for first in itertools.count(1):
        for second in itertools.count(1):
            path = tmp_path / f"{first}-{second}" / "lock.json"
            leave_dead(path, dead_pid)
            goes_on = take_and_die(taker, path, first)
            if not goes_on or not take_and_die(taker, path, second):
                break
            takes_and_frees(path)
            killed += 1
        if not goes_on:
            break
    assert killed > 400
    taker.end()


def test_a_process_frozen_at_any_point_beyond_its_lease_takes_nothing_from_the_next(
    tmp_path: Path, dead_pid: int
) -> None:
    taker = Taker(PROJECT, "points")
    lease = {
        "lease_s": 0.5,
        "settle_s": 0.0,
    }  # by which it is judged; it believes others for longer
    frozen = dict[Path, int]()
    for point in range(1, 60):
        path = tmp_path / str(point) / "lock.json"
        leave_dead(path, dead_pid, 2)
        patient = {**lease, "lease_s": 60.0}
        taker.tell(
            path=str(path), settings=patient, point=point, signal=signal.SIGSTOP, elsewhere=True
        )
        pid = int(taker.answer())
        said = path.with_name(f"{path.name}.said")
        wait_for("it to freeze or end", lambda said=said, pid=pid: said.exists() or is_stopped(pid))
        if said.exists():
            break
        frozen[path] = pid
    assert len(frozen) > 20

    mine = {path: Lock(path, **lease) for path in frozen}
    for path in frozen:
        wait_for("the lease to be over", lambda path=path: mine[path].acquire(), 30)
    for pid in frozen.values():
        os.kill(pid, signal.SIGCONT)
    words = Counter[str]()
    for path in frozen:
        said = path.with_name(f"{path.name}.said")
        wait_for("its word", lambda said=said: said.exists() and said.read_text())
        words[said.read_text()] += 1
        mine[path].verify()  # though it slept, nobody else took it
        mine[path].release()
    assert set(words) == {"refused", "lost"}
    taker.end()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_a_holder_that_slept_beyond_its_lease_learns_that_it_lost_the_lock(tmp_path: Path) -> None:
    path, lease = tmp_path / "lock.json", {"lease_s": 0.4, "settle_s": 0.0}
    also = Lock(tmp_path / "also.json", **lease)
    mine = Lock(path, **lease)
    assert mine.acquire() and mine.acquire_also(also)
    as_another_machine_sees(mine)

    other = Lock(path, **lease)
    wait_for("the lease to be over", other.acquire, 30)
    with pytest.raises(
        LockLost,
        match=rf"lock.json is now held by pid {os.getpid()} on .*did not renew its lock for 0 s",
    ):
        mine.renew()
    mine.release()
    other.verify()
    assert not also.path.exists()  # what nobody else has taken is freed all the same


def test_a_holder_that_slept_and_lost_a_second_name_alone_learns_of_it(tmp_path: Path) -> None:
    lease = {"lease_s": 0.4, "settle_s": 0.0}
    mine, also = Lock(tmp_path / "lock.json", **lease), Lock(tmp_path / "also.json", **lease)
    assert mine.acquire() and mine.acquire_also(also)
    as_another_machine_sees(mine)
    other = Lock(also.path, **lease)
    wait_for("the lease to be over", other.acquire, 30)
    with pytest.raises(LockLost, match=r"also\.json"):
        mine.renew()
    mine.release()
    other.verify()
    assert not mine.path.exists()


def as_another_machine_sees(mine: Lock) -> None:
    """Makes this process's lock one that is judged by its lease alone."""
    found = {**json.loads(mine.content), "boot": "of another machine"}
    mine.content = json.dumps(found).encode()
    with mine.path.open("wb") as file:
        file.write(mine.content)


def test_a_renewed_lease_holds(tmp_path: Path) -> None:
    path, lease = tmp_path / "lock.json", {"lease_s": 1.0, "settle_s": 0.0}
    mine = Lock(path, **lease)
    assert mine.acquire()
    as_another_machine_sees(mine)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        mine.renew()
        assert not Lock(path, **lease).acquire()
        time.sleep(0.02)
    mine.release()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_was_deleted_by_hand_is_lost(tmp_path: Path) -> None:
    mine = Lock(tmp_path / "lock.json")
    assert mine.acquire()
    mine.path.unlink()
    with pytest.raises(LockLost, match="is gone, and with it this process's lock"):
        mine.verify()
    mine.release()


def test_a_link_whose_answer_was_lost_is_a_link(tmp_path: Path) -> None:
    """NFS sends a request again where no answer came; the server then says that the name exists."""
    code = (
        "import os, sys; from pathlib import Path; from trainer.config.files.lock import Lock\n"
        "link = os.link\n"
        "def answer_is_lost(source, target):\n"
        "    link(source, target)\n"
        "    raise FileExistsError(17, 'File exists', str(source), None, str(target))\n"
        "os.link = answer_is_lost\n"
        "mine = Lock(Path(sys.argv[1]))\n"
        "assert mine.acquire() and not Lock(Path(sys.argv[1])).acquire()\n"
        "also = Lock(Path(sys.argv[1] + '2')); assert mine.acquire_also(also)\n"
        "mine.release(); assert os.listdir(os.path.dirname(sys.argv[1])) == []\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lock.json")],
        cwd=PROJECT,
        check=True,
        timeout=60,
    )


def test_what_cannot_be_read_is_not_taken_for_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    path.mkdir()
    with pytest.raises(OSError):
        Lock(path).acquire()
    assert Lock(path).holder() is None and path.is_dir()


def test_messages_name_the_owner(tmp_path: Path) -> None:
    mine = Lock(tmp_path / "lock.json")
    assert mine.owner() == "nobody any more"
    assert mine.acquire(attempt="local-1")
    assert mine.owner() == f"pid {os.getpid()} on {lock.me()['host']} (local-1)"
    mine.release()


def test_a_nonce_that_is_no_name_names_no_file(tmp_path: Path, dead_pid: int) -> None:
    path = tmp_path / "deep" / "lock.json"
    leave_dead(path, dead_pid)
    write_json(path, {**json.loads(path.read_text()), "nonce": "../../x"})
    takes_and_frees(path)
    assert sorted(os.listdir(tmp_path)) == ["deep"]


def test_a_lock_makes_its_folder(tmp_path: Path) -> None:
    """The first submit of a sweep takes the lock of its queue before there is a folder of the
    sweep.
    """
    held = Lock(tmp_path / "a.sweep" / "queue-lock.json")
    assert held.acquire()
    held.release()
