"""A real Slurm cluster of nodes in namespaces of their own, booted as root into one directory;
standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "sinfo", "ip", "unshare")
DATABASE_DAEMONS = ("slurmdbd", "mariadbd", "sacctmgr")
INSTALL = (
    "apt-get install slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core iproute2"
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# in every daemon's environment, so that one that was never recorded is found too
MARK = "BATCHYARD_TEST_CLUSTER"
FREEZER = Path("/sys/fs/cgroup/freezer")


class ClusterError(RuntimeError):
    """The cluster is not what was asked for; the message carries the end of its logs."""


@dataclass(frozen=True)
class Options:
    """What differs between test clusters.

    `settings` goes over slurm.conf; an empty value removes a line.
    """

    gpus_per_node: int = 2
    accounting: bool = True
    proctrack: str = "cgroup"
    # bind to cores, hide other jobs' GPUs, kill a job that goes beyond --mem
    constrain: bool = False
    kill_on_bad_exit: bool = False
    requeue_delay_s: int = 5
    grace_s: int = 10  # what a preempted job of QOS low has left
    net: str = "auto"  # the first three octets of a /24
    settings: dict[str, str] = field(default_factory=dict)


def missing(accounting: bool = True) -> str | None:
    """Why no cluster can be booted here, or None."""
    absent = [
        x
        for x in DAEMONS + (DATABASE_DAEMONS if accounting else ())
        if not shutil.which(x, path=PATH)
    ]
    if absent:
        return f"missing commands {', '.join(absent)}: {INSTALL}"
    return None if os.geteuid() == 0 else "namespaces and cgroups need root"


def tables_of_mariadb(part: str) -> Path:
    """MariaDB's own tables as SQL: up to its release 10 they have MySQL's name."""
    before = Path(f"/usr/share/mysql/mysql_system_tables{part}.sql")
    return (
        before if before.exists() else Path(f"/usr/share/mariadb/mariadb_system_tables{part}.sql")
    )


def start_tick(pid: int) -> str | None:
    """The start tick of a process that lives and is no zombie, else None: it tells a pid from its
    reuse.
    """
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if words[0] == "Z" else words[19]
    return None


# Words of `key=value`, one line each in the file. AuthInfo's cred_expire is also how long a
# requeued job must wait before it starts again (120 s by default); config_overrides lets a node
# have more CPUs than the machine; MinJobAge keeps a finished job visible; preempt_send_user_signal:
# at preemption with a GraceTime, send what --signal names, not SIGTERM.
SLURM_CONF = """
ClusterName={cluster} SlurmctldHost={host}({net}.1) SlurmctldPort={port} SlurmUser=root SlurmdUser=root
AuthType=auth/munge CredType=cred/munge AuthInfo=socket={dir}/run/munge.sock,cred_expire={options.requeue_delay_s}
StateSaveLocation={dir}/ctld SlurmctldPidFile={dir}/run/slurmctld.pid SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log SlurmdLogFile={dir}/log/slurmd.%n.log LogTimeFormat=iso8601_ms
ProctrackType=proctrack/{options.proctrack} TaskPlugin={task_plugin} SwitchType=switch/none MpiDefault=none
JobAcctGatherType=jobacct_gather/linux JobAcctGatherFrequency=task=1 MailProg=/bin/true GresTypes=gpu
SlurmdSpoolDir={dir}/spool/%n SlurmdParameters=config_overrides SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=5 SlurmctldTimeout=10 MessageTimeout=10 TCPTimeout=1 BatchStartTimeout=10 ReturnToService=2 MaxJobCount=20000
SelectType=select/cons_tres SelectTypeParameters=CR_Core_Memory DefMemPerCPU=256 SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,default_queue_depth=1000
PreemptMode=REQUEUE JobRequeue=1 KillWait=10 KillOnBadExit={options.kill_on_bad_exit:d} MinJobAge=3600 MaxArraySize=10001"""
WITHOUT_ACCOUNTING = (
    " AccountingStorageType=accounting_storage/none PreemptType=preempt/partition_prio"
)
# With munge the password is its socket.
WITH_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost={net}.1 AccountingStoragePort={database_port}
AccountingStoragePass={dir}/run/munge.sock AccountingStorageTRES=gres/gpu AccountingStorageEnforce=qos
PreemptType=preempt/qos PriorityType=priority/multifactor PriorityWeightQOS=10000"""
SLURMDBD_CONF = """
AuthType=auth/munge AuthInfo=socket={dir}/run/munge.sock DbdHost=localhost DbdAddr={net}.1 DbdPort={database_port}
SlurmUser=root StorageType=accounting_storage/mysql StorageHost=localhost StorageUser=root StorageLoc=slurm_acct_db
LogFile={dir}/log/slurmdbd.log PidFile={dir}/run/slurmdbd.pid DebugLevel=info"""
REGISTRATION = """
add cluster {cluster}; add qos low GraceTime={options.grace_s}; modify qos normal set Preempt=low;
add qos high Priority=100 Preempt=low,normal; modify user root set qos=normal,low,high defaultqos=normal"""
MY_CNF = """
[mysqld] user=root datadir={dir}/db socket={dir}/run/mysql.sock pid-file={dir}/run/mariadbd.pid
log-error={dir}/log/mariadbd.log skip-networking skip-grant-tables skip-name-resolve performance_schema=OFF key_buffer_size=1M
innodb_buffer_pool_size=32M innodb_log_file_size=16M innodb_lock_wait_timeout=900 innodb_flush_log_at_trx_commit=0
innodb_doublewrite=0 innodb_use_native_aio=0 aria_pagecache_buffer_size=1M max_allowed_packet=16M"""


@dataclass(frozen=True)
class Layout:
    """The configuration as text, a pure function of the options and of where the cluster lies."""

    dir: Path
    options: Options
    net: str

    @property
    def values(self) -> dict[str, Any]:
        """The fields of the templates.

        Daemons listen on every address, so each net has its own ports, below the range of outgoing
        connections; and the net is in the nodes' names, for the cgroup slurm_<node> is the whole
        machine's.
        """
        octet, host = int(self.net.split(".")[2]), socket.gethostname().split(".")[0]
        ports = dict(
            zip(
                ("port", "node_port", "database_port"),
                range(20000 + 20 * octet, 30000),
                strict=False,
            )
        )
        plugin = "task/affinity,task/cgroup" if self.options.constrain else "task/none"
        return {**vars(self), **ports, "cluster": f"by{octet}", "host": host, "task_plugin": plugin}

    @property
    def nodes(self) -> dict[str, str]:
        return {f"{self.values['cluster']}n{i + 1}": f"{self.net}.{11 + i}" for i in range(2)}

    def render(self, template: str) -> str:
        return "\n".join(template.format(**self.values).split()) + "\n"

    def slurm_conf(self) -> str:
        options = self.options
        text = self.render(
            SLURM_CONF + (WITH_ACCOUNTING if options.accounting else WITHOUT_ACCOUNTING)
        )
        settings = dict(line.split("=", 1) for line in text.splitlines()) | options.settings
        lines = [f"{key}={value}" for key, value in settings.items() if value]
        # More CPUs than the machine has; but a cpuset cannot name a core that is not there.
        cpus = len(os.sched_getaffinity(0)) if options.constrain else 8
        resources = f"Port={self.values['node_port']} CPUs={cpus} RealMemory=8000"
        resources += f" Gres=gpu:fake:{options.gpus_per_node}" if options.gpus_per_node else ""
        lines += [
            f"NodeName={x} NodeHostname={x} NodeAddr={ip} {resources}"
            for x, ip in self.nodes.items()
        ]
        partitions = {
            "main": "Default=YES PriorityTier=10",
            "scavenge": f"PriorityTier=1 GraceTime={options.grace_s}",
        }
        always = f"Nodes={','.join(self.nodes)} MaxTime=INFINITE DefaultTime=60"
        lines += [f"PartitionName={name} {always} {rest}" for name, rest in partitions.items()]
        return "\n".join(lines) + "\n"


class Processes:
    """The daemons, known by pid and start tick in `cluster.json`, so that no reused pid is ever
    killed.
    """

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.file = directory / "cluster.json"
        self.state: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.env = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "HOME": os.environ.get("HOME", "/root"),
            MARK: str(directory),
        }
        self.env["SLURM_CONF"] = str(directory / "etc/slurm.conf")
        self._children: set[int] = set()

    def save(self, **changes: Any) -> None:
        self.state.update(changes)
        self.file.with_suffix(".tmp").write_text(json.dumps(self.state, indent=1))
        self.file.with_suffix(".tmp").rename(self.file)

    def spawn(self, name: str, *argv: str) -> int:
        # Not Popen, which warns where `up` leaves its daemons running; signals that Python ignores
        # are put back.
        log, flags = self.dir / f"log/{name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644),
        ]
        files.append((os.POSIX_SPAWN_DUP2, 1, 2))
        default, program = (
            [signal.SIGPIPE, signal.SIGXFSZ],
            shutil.which(argv[0], path=PATH) or argv[0],
        )
        pid = os.posix_spawn(
            program, argv, self.env, file_actions=files, setsid=True, setsigdef=default
        )
        self._children.add(pid)
        self.save(processes=self.state.get("processes", {}) | {name: [pid, start_tick(pid)]})
        return pid

    def alive(self, name: str) -> bool:
        pid, tick = self.state.get("processes", {}).get(name, (0, None))
        return tick is not None and start_tick(pid) == tick

    def kill(self, name: str) -> None:
        """No farewell: what a daemon would save on its way out is deleted anyway."""
        pid = self.state.get("processes", {}).get(name, (0,))[0]
        while self.alive(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        if pid in self._children:
            self._children.remove(pid)
            os.waitpid(pid, 0)

    def kill_all(self) -> None:
        for name in sorted(self.state.get("processes", {}), reverse=True):
            self.kill(name)
        while pids := self._marked():  # whose starter was killed before it could write them down
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _marked(self) -> list[int]:
        mark, found = f"{MARK}={self.dir}\0".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                found += [int(path.parent.name)] * (mark in path.read_bytes())
        return found

    def sh(self, *argv: str, check: bool = True, stdin: str = "") -> str:
        pipe, both = subprocess.PIPE, subprocess.STDOUT
        done = subprocess.run(
            argv, env=self.env, input=stdin, stdout=pipe, stderr=both, text=True, check=False
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout[-2000:]}")
        return done.stdout


class Cluster:
    """One cluster in one directory, which it owns and removes."""

    def __init__(self, directory: str | Path) -> None:
        self.dir = Path(directory).resolve()
        self.processes = Processes(self.dir)

    @property
    def nodes(self) -> list[str]:
        return list(self.processes.state.get("nodes", {}))

    def up(self, options: Options | None = None, owner: int | None = None) -> None:
        """Boots; first cleans what a dead owner left in the directory.

        `owner` is a pid: while it lives, nobody cleans.
        """
        options = options or Options()
        if problem := missing(options.accounting):
            raise ClusterError(problem)
        if options.proctrack == "cgroup" and not os.access(FREEZER, os.W_OK):
            raise ClusterError(
                f"{FREEZER} (cgroup v1) is not there; linuxproc hides lost signals, so ask for it"
            )
        self.down()
        self.dir.mkdir(parents=True, mode=0o755)
        self.processes = Processes(self.dir)
        self.processes.save(owner=[owner, start_tick(owner)] if owner else None)
        layout = Layout(self.dir, options, self._claim_net(options.net))
        self.processes.save(net=layout.net, nodes=layout.nodes)
        self._write(layout)
        self._start_services(layout)
        self.processes.spawn("slurmctld", "slurmctld", "-D", "-f", str(self.dir / "etc/slurm.conf"))
        for node in self.nodes:
            self.start_node(node)
        self.wait_for(
            "all nodes idle",
            lambda: set(self.node_states().values()) == {"idle"},
            daemon="slurmctld",
        )
        self._check_proctrack(options.proctrack)

    def _check_proctrack(self, wanted: str) -> None:
        """linuxproc signals a whole tree, cgroup only a step's child: tests on the wrong one pass
        code that loses work.
        """
        found = [
            x
            for x in self.processes.sh("scontrol", "show", "config").splitlines()
            if "ProctrackType" in x
        ]
        if not found or found[0].split()[-1] != f"proctrack/{wanted}":
            raise ClusterError(f"asked for proctrack/{wanted}, came up with: {found}")
        if wanted == "cgroup" and (
            lost := [n for n in self.nodes if not (FREEZER / f"slurm_{n}").is_dir()]
        ):
            raise ClusterError(
                f"proctrack/cgroup, yet no freezer cgroup of {lost}\n{self.log_tail()}"
            )

    def _claim_net(self, wanted: str) -> str:
        """Making the bridge is the claim: of two clusters that boot at once, one gets it and the
        other the next net.
        """
        taken = self.processes.sh("ip", "-4", "addr") + self.processes.sh("ip", "-4", "route")
        for net in [f"10.213.{octet}" for octet in range(7, 250)] if wanted == "auto" else [wanted]:
            bridge = f"batchyard{net.split('.')[2]}"
            if f" {net}." in taken or self.processes.sh(
                "ip", "link", "add", bridge, "type", "bridge", check=False
            ):
                continue
            self.processes.save(bridge=bridge)
            self.processes.sh("ip", "addr", "add", f"{net}.1/24", "dev", bridge)
            self.processes.sh("ip", "link", "set", bridge, "up")
            return net
        raise ClusterError(f"net {wanted}: in use here")

    def _write(self, layout: Layout) -> None:
        d, etc = self.dir, self.dir / "etc"
        for name in ("etc", "log", "run", "spool", "ctld", "dev", "db"):
            (d / name).mkdir()
        hosts = {
            "localhost": "127.0.0.1",
            f"ctl {socket.gethostname()}": f"{layout.net}.1",
        } | layout.nodes
        gres = "AutoDetect=off\n"
        for node, i in [
            (node, i) for node in layout.nodes for i in range(layout.options.gpus_per_node)
        ]:
            device = d / f"dev/{node}-nvidia{i}"
            # NVIDIA's device numbers, no driver behind them
            os.mknod(device, 0o20666, os.makedev(195, i))
            gres += f"NodeName={node} Name=gpu Type=fake File={device}\n"
        limits = "".join(
            f" Constrain{x}=yes" for x in ("Cores", "Devices", "RAMSpace", "SwapSpace")
        )
        cgroup = "CgroupPlugin=cgroup/v1 CgroupAutomount=no" + (
            limits if layout.options.constrain else ""
        )
        files = {
            "slurm.conf": layout.slurm_conf(),
            "gres.conf": gres,
            "cgroup.conf": layout.render(cgroup),
        }
        files |= {"slurmdbd.conf": layout.render(SLURMDBD_CONF), "my.cnf": layout.render(MY_CNF)}
        files |= {
            "hosts": "".join(f"{ip} {name}\n" for name, ip in hosts.items()),
            "munge.key": secrets.token_hex(64),
        }
        for name, text in files.items():
            (etc / name).write_text(text)
            (etc / name).chmod(0o600 if name in ("munge.key", "slurmdbd.conf") else 0o644)

    def _start_services(self, layout: Layout) -> None:
        d, etc, start = self.dir, self.dir / "etc", self.processes.spawn
        munged = ["munged", "--foreground", "--num-threads=4", f"--key-file={etc}/munge.key"]
        munged += [f"--socket={d}/run/munge.sock", f"--pid-file={d}/run/munged.pid"]
        munged += [f"--log-file={d}/log/munged.log", f"--seed-file={d}/run/munge.seed"]
        force = ["--force"] if os.stat("/").st_uid else []  # in a user namespace / is nobody's
        start("munged", *munged, *force)
        self.wait_for("munge", (d / "run/munge.sock").exists, "munged")
        if not layout.options.accounting:
            return
        tables = [tables_of_mariadb(x).read_text() for x in ("", "_data")]
        sql = "\n".join(
            ["create database mysql;", "use mysql;", *tables, "create database slurm_acct_db;", ""]
        )
        mariadbd = ["mariadbd", f"--defaults-file={etc}/my.cnf"]
        (d / "log/bootstrap.log").write_text(self.processes.sh(*mariadbd, "--bootstrap", stdin=sql))
        start("mariadbd", *mariadbd)
        self.wait_for("mariadb", (d / "run/mysql.sock").exists, "mariadbd")
        self.processes.env["MYSQL_UNIX_PORT"] = str(d / "run/mysql.sock")
        start("slurmdbd", "slurmdbd", "-D")
        names = ["sacctmgr", "-n", "-P", "show", "qos", "format=name"]
        self.wait_for(
            "slurmdbd",
            lambda: "normal" in self.processes.sh(*names, check=False).split(),
            "slurmdbd",
        )
        for command in REGISTRATION.format(**layout.values).split(";"):
            self.processes.sh("sacctmgr", "-i", *command.split())

    def start_node(self, node: str) -> None:
        """Returns when slurmd is started, not when Slurm counts the node in again."""
        if node not in self.nodes or self.processes.alive(f"node-{node}"):
            raise ClusterError(f"{node} is no node that is off; there are {self.nodes}")
        state, sh = self.processes.state, self.processes.sh
        (self.dir / f"spool/{node}").mkdir(exist_ok=True)
        script = f"""set -eu
hostname {node}
mount --bind {self.dir}/etc/hosts /etc/hosts
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
i=0; until ip link show eth0 >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 500 ]; sleep 0.01; done
ip link set lo up; ip addr add {state["nodes"][node]}/24 dev eth0; ip link set eth0 up
slurmd -D -f {self.dir}/etc/slurm.conf -N {node} &
wait $!
"""
        unshare = [
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        pid = self.processes.spawn(f"node-{node}", *unshare, "sh", "-c", script)
        theirs, ours = Path(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net").st_ino
        self.wait_for(
            "a net", lambda: theirs.exists() and theirs.stat().st_ino != ours, f"node-{node}"
        )
        cable = f"{node}-veth"
        sh("ip", "link", "del", cable, check=False)
        sh("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        sh("ip", "link", "set", cable, "master", state["bridge"], "up")

    def kill_node(self, node: str) -> None:
        """A power cut: the network first, so that no dying process can say goodbye, then every
        process at once.
        """
        self.processes.sh(
            "ip", "link", "set", f"{node}-veth", "down"
        )  # fails where there is no such node, or it is off
        self.processes.kill(f"node-{node}")  # --kill-child takes the whole PID namespace along

    def down(self) -> None:
        """Ends every process, then removes bridge, cgroups and the directory.

        Nothing to do is no error.
        """
        state = self.processes.state
        if (
            self.dir.exists()
            and not state
            and {x.name for x in self.dir.iterdir()} - {"cluster.tmp"}
        ):
            raise ClusterError(f"{self.dir} is not a cluster's directory: not removed")
        pid, tick = state.get("owner") or (None, None)
        if pid not in (None, os.getpid()) and tick and start_tick(pid) == tick:
            raise ClusterError(f"{self.dir} belongs to process {pid}, which is alive")
        self.processes.kill_all()
        for link in [*(f"{node}-veth" for node in self.nodes), state.get("bridge", "")]:
            self.processes.sh("ip", "link", "del", link, check=False)
        # A cgroup is empty, and can be removed, only once its last process has been reaped.
        self.wait_for("end of the cgroups", self._remove_cgroups, timeout_s=5)
        if self.dir.exists():
            shutil.rmtree(self.dir)
        state.clear()

    def _remove_cgroups(self) -> bool:
        tops = [
            str(top)
            for node in self.nodes
            for top in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}")
        ]
        return not tops or not self.processes.sh(
            "find", *tops, "-depth", "-type", "d", "-delete", check=False
        )

    def node_states(self) -> dict[str, str]:
        """Slurm's word for each node; a star at its end says that it does not answer."""
        lines = self.processes.sh(
            "sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False
        ).splitlines()
        found = dict(line.split() for line in lines if line.count(" ") == 1)
        return {node: found.get(node, "unknown") for node in self.nodes}

    def wait_for(
        self, what: str, condition: Callable[[], Any], daemon: str = "", timeout_s: float = 30
    ) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            if (dead := daemon and not self.processes.alive(daemon)) or time.monotonic() > end:
                why = (
                    f"{daemon} died"
                    if dead
                    else f"{timeout_s} s passed; nodes {self.node_states()}"
                )
                raise ClusterError(f"while waiting for {what}: {why}\n{self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self, lines: int = 15) -> str:
        logs = sorted(path for path in (self.dir / "log").glob("*") if path.stat().st_size)
        return "\n".join(
            f"--- {x}\n" + "\n".join(x.read_text(errors="replace").splitlines()[-lines:])
            for x in logs
        )

    def status(self) -> str:
        processes = self.processes.state.get("processes", {})
        rows = [
            f"{name:12} pid {processes[name][0]:<8} alive {self.processes.alive(name)}"
            for name in processes
        ]
        return "\n".join([*rows, self.processes.sh("sinfo", "-N", check=False) if rows else "down"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("up", "down", "status", "kill-node", "start-node"))
    parser.add_argument("node", nargs="?", default="", help="for kill-node and start-node")
    parser.add_argument("--dir", required=True)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    for option in fields(Options)[:-1]:
        kind = {"int": int, "bool": bool}.get(str(option.type).split()[0], str)
        how: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        )
        parser.add_argument(f"--{option.name.replace('_', '-')}", default=option.default, **how)
    given = vars(parser.parse_intermixed_args())
    verb, node, cluster = given.pop("verb"), given.pop("node"), Cluster(given.pop("dir"))
    try:
        if verb == "up":
            cluster.up(
                Options(
                    **given | {"settings": dict(word.split("=", 1) for word in given["settings"])}
                )
            )
            print(f"export SLURM_CONF={cluster.processes.env['SLURM_CONF']}")
        elif verb.endswith("-node"):
            (cluster.kill_node if verb == "kill-node" else cluster.start_node)(node)
        else:
            print(getattr(cluster, verb)() or "down")
    except ClusterError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
