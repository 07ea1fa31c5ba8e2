"""Several processes as one: torchrun's environment, PyTorch's collectives, and what rank 0 alone does."""

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
    """This process's place among all of them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that prints and writes."""
        return self.rank == 0

    def share_of(self, replicas: int) -> list[int]:
        """Return the replicas that this process computes, neighbours together.

        Raises:
            ConfigError: the processes do not divide the replicas.
        """
        if replicas % self.world_size:
            raise ConfigError(
                f"replicas: expected a multiple of the {self.world_size} processes, got {replicas}.",
                remedy=f"Start a number of processes that divides {replicas}, or set replicas.",
            )
        each = replicas // self.world_size
        return list(range(self.rank * each, (self.rank + 1) * each))

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the device of `values`, in one exchange."""
        if self.world_size == 1:
            return values
        # gloo reduces on the CPU, nccl on the GPU; a few numbers cost nothing to move. A copy: it is summed in place.
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


def join_processes(timeout_s: float = 600.0) -> Processes:
    """Join the processes that torchrun started; alone, without torchrun.

    Each start gets a key prefix of its own in the store, which torchrun keeps over restarts: with the addresses of
    dead workers left in it, restarts hang or fail (pytorch issues 135712, 167288).

    Raises:
        ConfigError: only a part of torchrun's variables is set.
        RunError: the others do not come.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
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


def _place() -> tuple[int, int, int, int]:
    """Rank, number of processes, rank on this host, and the port of the store, from torchrun's variables."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    values = {"LOCAL_RANK": "0"} | {name: os.environ[name] for name in names if name in os.environ}
    wrong = [name for name in names if not values.get(name, "").isdecimal()]
    wrong += [] if os.environ.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: expected torchrun's variables all together, got none or others.",
            remedy="Start several processes with torchrun; for one alone, unset RANK.",
        )
    return int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]), int(values["MASTER_PORT"])


def _agree_on_name(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> str:
    """Return a name for this start of the processes: equal on all of them, and never used before in the store.

    torchrun's count of restarts is none: on several hosts, one that only sees another come back restarts without
    counting. Here every process says hello with a fresh token; rank 0 proposes the tokens that it sees, and goes
    ahead once every process has answered to exactly these. A dead process's token is never answered to.
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
        f"process {rank}: expected to meet the other {world_size - 1} within {timeout_s:g} s, got no answer from all.",
        remedy="Check that every host started, and that they reach each other; then --resume. More in "
        "`deepcait help unreachable-processes`.",
    )


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process ended or could not be reached."""
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
