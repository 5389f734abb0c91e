"""A Slurm cluster of one node, this machine, on loopback, for as long as a `with` block lasts."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager

# No cgroups and no accounting, since a container has neither. Memory is declared and not enforced; the GPU is
# counted but not there, so that jobs must ask for it and then find the CPU. Finished jobs stay in the list.
SLURM_CONF = """\
ClusterName=streamlm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
MinJobAge=86400
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=131072 Gres=gpu:1
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE
"""


@contextmanager
def one_node_cluster(folder):
    """Run munged, slurmctld and slurmd, all files in `folder`; yield the environment of their clients.

    At the end the jobs are cancelled and the three daemons ended, and nothing else.
    """
    environment = write_cluster(folder)
    munged = [
        "munged", "--foreground", "--force",  # it may then run as root
        f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
        f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
    ]  # fmt: skip
    with ExitStack() as daemons:
        daemons.enter_context(daemon(munged, folder, environment))
        wait_for(lambda: (folder / "munge.socket").exists(), folder)
        daemons.enter_context(daemon(["slurmctld", "-D"], folder, environment))
        daemons.enter_context(daemon(["slurmd", "-D"], folder, environment))
        wait_for(lambda: client("sinfo --noheader --format=%T", environment) == "idle", folder)
        try:
            yield environment
        finally:
            client(f"scancel --user={getpass.getuser()}", environment)
            wait_for(lambda: client("squeue --noheader", environment) == "", folder)


def write_cluster(folder):
    """Write the configuration of a cluster into `folder`; return the environment of its clients."""
    folder.chmod(0o755)  # munged's clients must reach its socket
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")  # counted by the files that stand for them
    ctld_port, d_port = free_ports(2)
    conf = folder / "slurm.conf"
    conf.write_text(
        SLURM_CONF.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            cpus=os.cpu_count(),
            folder=folder,
            ctld_port=ctld_port,
            d_port=d_port,
        )
    )
    path = f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin"
    # The executor plugin calls srun without the variables SLURM_*, SLURM_CONF among them.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    return {**os.environ, "PATH": path, "SLURM_CONF": str(conf)}


@contextmanager
def daemon(command, folder, environment):
    """Run a daemon in the foreground of its own process; its output goes to `folder`."""
    with (folder / f"{command[0]}.log").open("w") as log:
        # In a session of its own: a Ctrl-C is not for the daemons, which must first see the jobs cancelled.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def client(command, environment):
    """Return what a client of the cluster prints."""
    done = subprocess.run(command.split(), env=environment, capture_output=True, text=True)
    return done.stdout.strip()


def wait_for(condition, folder, seconds=60):
    """Wait until `condition()` holds.

    Raises:
        TimeoutError: if it does not; with the ends of the daemons' logs.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            ends = [f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log"))]
            raise TimeoutError("\n".join([f"the cluster did not get there in {seconds} s", *ends]))
        time.sleep(0.2)


def free_ports(count):
    """Return ports of loopback on which nothing listens."""
    with ExitStack() as sockets:
        held = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]
