"""Servers of this machine that a test starts for itself."""

import contextlib
import glob
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
import time

import pytest


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def eventually(happened, seconds=900.0):
    """What `happened()` gives once it is true; only what hangs takes that long."""
    deadline = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < deadline, happened
        time.sleep(0.05)
    return value


SLURM_CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def cluster(monkeypatch):
    """SLURM on this machine, with munge, both for the test alone."""
    missing = [
        name
        for name in ("munged", "slurmctld", "slurmd", "sbatch")
        if not shutil.which(name)
    ]
    if missing or os.getuid():
        pytest.skip("needs root and SLURM (make system-deps)")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sweep-slurm-"))
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = SLURM_CONF.format(
        host=socket.gethostname().split(".")[0],
        folder=folder,
        ports=(free_port(), free_port()),
    )
    (folder / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    commands = [
        [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={folder}/munge", f"--pid-file={folder}/munge.pid"),
            *(f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"),
        ],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            started = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(started.wait)
            stack.callback(started.terminate)
            if command[0] == "munged":
                eventually((folder / "munge").exists)

        def idle():
            said = subprocess.run(
                ["sinfo", "--noheader", "--format=%t"],
                capture_output=True,
                text=True,
                check=False,
            )
            return said.stdout.strip() == "idle"

        eventually(idle)
        yield folder
        # Steps would wait for good for a controller that has gone.
        subprocess.run(["scancel", "--user=root"], check=True)
        eventually(idle)


class Postgres:
    """A server of Debian's PostgreSQL.

    Attributes:
      url: what it is called by.
    """

    def __init__(self, folder, binaries):
        self._folder, self._binaries = folder, binaries
        self._user, self._port = pwd.getpwuid(os.getuid()).pw_name, free_port()
        self._become = []
        if self._user == "root":  # as which it refuses to run
            self._user = "postgres"
            self._become = ["setpriv", "--reuid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres")
        self.url = f"postgresql://{self._user}@127.0.0.1:{self._port}/postgres"
        options = ("-A", "trust", "-U", self._user, "--no-sync")
        self._call("initdb", "-D", folder / "data", *options)

    def control(self, *words):
        """Calls pg_ctl."""
        self._call("pg_ctl", "-w", "-D", self._folder / "data", *words)

    def start(self):
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k {self._folder} -F"
        self.control("-l", self._folder / "log", "-o", options, "start")

    def stop(self):
        self.control("-m", "immediate", "stop")

    def _call(self, program, *words):
        subprocess.run(
            [*self._become, str(self._binaries / program), *map(str, words)],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


@pytest.fixture
def postgres():
    """A server, started for the test."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        pytest.skip("needs PostgreSQL (make system-deps)")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sweep-postgres-"))
    try:
        server = Postgres(folder, pathlib.Path(found[-1]).parent)
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
