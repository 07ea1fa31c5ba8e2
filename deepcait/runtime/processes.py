"""Distributed processes: torchrun's environment, PyTorch's collectives, rank 0."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepcait.errors import ConfigError, RunError


@dataclass(frozen=True)
class Processes:
    """This process's rank among all processes."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that prints and writes."""
        return self.rank == 0

    def share_of(self, replicas: int) -> list[int]:
        """Return the consecutive replicas that this process computes.

        Raises:
            ConfigError: the number of processes does not divide the number of replicas.
        """
        if replicas % self.world_size:
            raise ConfigError(
                f"replicas ({replicas}) must be a multiple of the number of processes ({self.world_size}).",
                remedy=f"Start a number of processes that divides {replicas}, or set replicas.",
            )
        each = replicas // self.world_size
        return list(range(self.rank * each, (self.rank + 1) * each))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the device of `values`, in one all-reduce."""
        if self.world_size == 1:
            return values
        # gloo reduces on the CPU, nccl on the GPU; moving a few numbers is cheap. A copy, since the sum is in place.
        total = values.to(_collective_device(), copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank, on each of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def num_processes() -> int:
    """Return how many processes torchrun started, by its variables; 1 without torchrun."""
    number = os.environ.get("WORLD_SIZE", "")
    return int(number) if "RANK" in os.environ and number.isdecimal() else 1


def num_local_processes() -> int:
    """Return how many of them share this machine."""
    number = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(number) if "RANK" in os.environ and number.isdecimal() and int(number) else num_processes()


def local_rank() -> int:
    """Return this process's number among those that torchrun started on this machine; 0 without torchrun."""
    number = os.environ.get("LOCAL_RANK", "")
    return int(number) if "RANK" in os.environ and number.isdecimal() else 0


def join_processes(timeout_s: float = 600.0) -> Processes:
    """Join the processes that torchrun started; without torchrun, a single process.

    Each start gets its own key prefix in the store, which torchrun keeps over restarts: with the addresses of
    dead workers left in it, restarts hang or fail (pytorch issues 135712, 167288).

    Raises:
        ConfigError: torchrun's variables are set only in part, or srun started several processes without torchrun.
        RunError: the other processes can't be reached.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
        _require_one_task()
        return Processes()
    rank, world_size, local_rank, port = _place()
    if not dist.is_initialized():
        timeout = timedelta(seconds=timeout_s)
        host = os.environ["MASTER_ADDR"]
        # Under torchrun the agent hosts the store; started by hand, rank 0 does.
        agent_hosts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0 and not agent_hosts, timeout=timeout)
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank)
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=dist.PrefixStore(_agree_on_name(store, rank, world_size, timeout_s), store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    return Processes(rank, world_size, local_rank)


def _require_one_task() -> None:
    """Raise if SLURM started this command several times; each would train the whole run."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or "1"
    if tasks.isdecimal() and int(tasks) > 1:
        raise ConfigError(
            f"SLURM runs {tasks} tasks, but torchrun did not start this process: each task would do all the work.",
            remedy="Start torchrun in one task per machine: `srun --ntasks-per-node=1 torchrun ... -m deepcait ...`. "
            "For a single process use `srun --ntasks=1`, or unset SLURM_NTASKS.",
        )


def _place() -> tuple[int, int, int, int]:
    """Rank, number of processes, rank on this host, and the port of the store, from torchrun's variables."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    values = {"LOCAL_RANK": "0"} | {name: os.environ[name] for name in names if name in os.environ}
    wrong = [name for name in names if not values.get(name, "").isdecimal()]
    wrong += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: torchrun's environment variables are incomplete or invalid.",
            remedy="Start several processes with torchrun; for a single process, unset RANK.",
        )
    return int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]), int(values["MASTER_PORT"])


def _agree_on_name(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> str:
    """Return a name for this start: equal on all processes, and not used before in the store.

    torchrun's restart count does not suffice: with several hosts, a host that only notices the return of another one
    restarts without counting. So every process publishes a new token; rank 0 proposes those it finds, and continues
    once every process has confirmed exactly these. The token of a dead process is never confirmed.
    """
    token = secrets.token_hex(8)
    store.set(f"hello/{rank}", token)
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if rank == 0:
            store.set("tokens", " ".join(store.get(f"hello/{other}").decode() for other in range(world_size)))
        tokens = store.get("tokens").decode()
        if len(tokens.split()) == world_size and tokens.split()[rank] == token:
            name = hashlib.sha256(tokens.encode()).hexdigest()[:16]
            store.set(f"{name}/answer/{rank}", "")
            if rank == 0 and store.check([f"{name}/answer/{other}" for other in range(world_size)]):
                store.set(f"{name}/go", "")
            if store.check([f"{name}/go"]):
                return name
        time.sleep(0.05)
    raise RunError(
        f"process {rank} could not reach all of the other {world_size - 1} processes within {timeout_s:g} s.",
        remedy="Check that every host started and that they reach each other; then use --resume. More: "
        "`deepcait help unreachable-processes`.",
    )


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a collective failed because another process ended or could not be reached."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def leave_processes() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def host_name() -> str:
    """Return this machine's name, for `timing.jsonl`."""
    return socket.gethostname()


def _collective_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
