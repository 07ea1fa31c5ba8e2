"""Real training processes: started, watched, killed, and what they leave behind compared byte for byte."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from deepcait.model import CaiT, CaiTConfig
from deepcait.weights.artefact import save_artefact
from tests.processes.nursery import Child, Nursery

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "deepcait" / "assets" / "demo"
CLASSES = ("airplane", "frog", "ship")
# How long a test waits for what comes sooner or later, on a busy machine too; less than pytest's limit for a test.
PATIENCE_S = 270.0
FINISHED_ENTRIES = {
    *("best", "last", "checkpoints", "config.yaml", "data.json", "environment.json"),
    *("metrics.csv", "metrics.jsonl", "report.html", "split.json", "start.json", "status.json", "timing.jsonl"),
}

# Every part of the paper's recipe that draws at random, on 40 steps of a few milliseconds.
RECIPE = """
epochs: 5
global_batch_size: 8
replicas: 2
drop_path_rate: 0.1
data: {num_workers: 0}
augment: {rand_augment: rand-m9-mstd0.5-inc1, erase: 0.25, repeats: 2}
mix: {mixup: 0.8, cutmix: 1.0, label_smoothing: 0.1}
optimizer: {lr: 1.0e-3, lr_batch: 0, clip_norm: 1.0}
schedule: {warmup_epochs: 1, warmup_lr: 1.0e-5, min_lr: 1.0e-5}
ema: {decay: 0.9, warmup: true, evaluated: true}
keep: {log_every_steps: 1, checkpoint_every_steps: 3, checkpoint_every_s: 0}
"""


@dataclass(frozen=True)
class Bench:
    """What every run of these tests starts from.

    data: class folders, 24 training and 8 test images per class. recipe: the file. model: the folder of a tiny CaiT.
    """

    data: Path
    recipe: Path
    model: Path

    def train(self, out: Path, *options: str) -> list[str]:
        """The arguments of `deepcait` that train into a folder."""
        given = ("--data", self.data, "--recipe", self.recipe, "--model", self.model, "--out", out)
        return ["train", *map(str, given), *options]

    def command(self, out: Path, *options: str) -> list[str]:
        """The command line of one training process."""
        return [sys.executable, "-m", "deepcait", *self.train(out, *options)]

    def torchrun(self, out: Path, *options: str, launcher: Sequence[str] = ()) -> list[str]:
        """The command line of two training processes on this machine."""
        launcher = launcher or ("--nproc-per-node", "2", "--master-port", str(free_port()))
        head = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "deepcait"]
        return head + self.train(out, *options)


def make_bench(folder: Path) -> Bench:
    """Write data, recipe and model."""
    for split, origin, number in (("train", "train", 24), ("val", "test", 8)):
        for name in CLASSES:
            (folder / "data" / split / name).mkdir(parents=True)
            for path in sorted((DEMO / origin / name).iterdir())[:number]:
                shutil.copy2(path, folder / "data" / split / name)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    save_artefact(folder / "model", tiny_model(), preprocessing={}, classes=list(CLASSES))
    return Bench(folder / "data", folder / "recipe.yaml", folder / "model")


def tiny_model() -> CaiT:
    """A CaiT of two blocks with scales of order 1, so that no branch is invisible."""
    torch.manual_seed(7)
    config = CaiTConfig(
        embed_dim=32, depth=2, num_heads=2, img_size=32, patch_size=8, num_classes=3, layer_scale_init=0.5
    )
    return CaiT(config)


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# -- processes --------------------------------------------------------------------------------------------------------


class Started:
    """A command and all that it starts, in a process group of its own.

    Every process inherits a token in its environment: by it they are found, wherever they moved to, and cleaned up.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: dict[str, str] | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        name, value = "DEEPCAIT_TEST_TOKEN", uuid.uuid4().hex
        self.token = f"{name}={value}"
        self.log = log
        extra = (environment or {}) | {name: value}
        for ending in (".out", ".err"):
            Path(f"{log}{ending}").write_bytes(b"")
        if nursery is not None:
            assert command[0] == sys.executable
            self.process: subprocess.Popen | Child = nursery.start(list(command[1:]), log, extra)
            return
        settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=settings | extra,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return Path(f"{self.log}.out").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        return Path(f"{self.log}.err").read_text(encoding="utf-8", errors="replace")

    def pids(self) -> list[int]:
        """All living processes of this command."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._ours(pid)]

    def workers(self, local_rank: int | None = None) -> list[int]:
        """The training processes that torchrun started: those with a rank, one of them or all."""
        wanted = f"LOCAL_RANK={local_rank}" if local_rank is not None else "LOCAL_RANK="
        found = []
        for pid in self.pids():
            entries = _environment(pid)
            # The loader's workers inherit the rank; the training process is a child of torchrun itself.
            if _parent(pid) == self.process.pid and any(entry.startswith(wanted) for entry in entries):
                found.append(pid)
        return found

    def kill(self) -> None:
        """kill -9 for every process, at once."""
        for pid in [self.process.pid, *self.pids()] if self.process.poll() is None else self.pids():
            _kill(pid, signal.SIGKILL)

    def kill_only(self, pid: int) -> None:
        _kill(pid, signal.SIGKILL)

    def terminate_group(self) -> None:
        """SIGTERM for all, as `timeout` and schedulers of clusters send it."""
        os.killpg(self.process.pid, signal.SIGTERM)

    def terminate_all(self) -> None:
        """SIGTERM for every process by itself: torchrun gives its workers sessions of their own."""
        for pid in self.pids():
            _kill(pid, signal.SIGTERM)

    def interrupt_group(self) -> None:
        """What Ctrl-C does on a terminal: SIGINT for the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; its exit code (negative: the signal that ended it)."""
        return self.process.wait(timeout_s)

    def wait_for(self, condition: Callable[[], bool], *, pause_s: float = 0.002, timeout_s: float = PATIENCE_S) -> bool:
        """Wait until something holds; False if the command ended first."""
        end = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > end:
                raise TimeoutError(f"nothing came of it in {timeout_s} s\n{self.stdout}\n{self.stderr}")
            if pause_s:
                time.sleep(pause_s)
        return True

    def close(self) -> None:
        """Leave no process behind."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            self.kill()
            if self.process.poll() is not None and not self.pids():
                break
            time.sleep(0.05)

    def _ours(self, pid: int) -> bool:
        try:
            # A forked child keeps the environment of its parent in /proc, but leads a session.
            return os.getsid(pid) == self.process.pid or self.token in _environment(pid)
        except OSError:
            return False


@contextmanager
def started(command: Sequence[str], log: Path, **how) -> Iterator[Started]:
    """Start a command; at the end of the block none of its processes is left."""
    process = Started(command, log, **how)
    try:
        yield process
    finally:
        process.close()


def finish(command: Sequence[str], log: Path, *, timeout_s: float = PATIENCE_S, **how) -> Started:
    """Run a command to its end, which must be a good one."""
    with started(command, log, **how) as process:
        code = process.wait(timeout_s)
    assert code == 0, f"exit code {code}\n{process.stdout}\n{process.stderr}"
    return process


@contextmanager
def started_pair(command: Sequence[str], log: Path, nursery: Nursery, *, size: int = 2) -> Iterator[list[Started]]:
    """Start two processes, or more, that train together, without torchrun: what it would set is set here, faster."""
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    command,
                    Path(f"{log}_{rank}"),
                    environment=world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    nursery=nursery,
                )
            )
            for rank in range(size)
        ]


def finish_pair(command: Sequence[str], log: Path, nursery: Nursery, *, size: int = 2) -> list[Started]:
    """Run two processes, or more, to their end, which must be a good one."""
    with started_pair(command, log, nursery, size=size) as pair:
        codes = [process.wait() for process in pair]
    assert codes == [0] * size, "\n".join(f"{process.stdout}\n{process.stderr}" for process in pair)
    return pair


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


# -- moments ----------------------------------------------------------------------------------------------------------


def steps_logged(run: Path) -> int:
    """How many steps a run has logged up to now, in all its lives: rows of timing.jsonl, which is never cut."""
    try:
        return (run / "timing.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def save_under_way(run: Path) -> bool:
    """Whether a checkpoint, or a model folder, is being written."""
    if (run / "checkpoints" / ".unfinished").exists():
        return True
    try:
        return any(name.startswith((".best.", ".last.")) for name in os.listdir(run))
    except OSError:
        return False


def kill_at(process: Started, run: Path, steps: int, *, delay_s: float = 0.0, in_save: bool = False) -> bool:
    """kill -9 after some more steps, and a delay or in the next save; whether a save was under way.

    Raises AssertionError if the run ended before.
    """
    goal = steps_logged(run) + steps
    assert process.wait_for(lambda: steps_logged(run) >= goal), f"ended early\n{process.stdout}\n{process.stderr}"
    time.sleep(delay_s)
    if in_save:
        process.wait_for(lambda: save_under_way(run), pause_s=0)
    _kill(process.process.pid, signal.SIGKILL)
    code = process.wait()
    process.close()
    assert code == -signal.SIGKILL, f"ended with {code} before the kill\n{process.stderr}"
    return save_under_way(run)


def random_moment(seed: int, *, steps: int) -> dict[str, float | int]:
    """A seeded moment for `kill_at`: after 1..steps steps and up to 60 ms, about two steps."""
    draw = random.Random(seed)
    return {"steps": draw.randint(1, steps), "delay_s": draw.uniform(0.0, 0.06)}


# -- what is left -----------------------------------------------------------------------------------------------------


def result(run: Path) -> dict[str, str]:
    """A digest of every file that seed and step decide: models, metrics and the newest checkpoint."""
    files = [run / "metrics.jsonl", run / "metrics.csv", newest_checkpoint_file(run)]
    files += [path for name in ("best", "last") for path in (run / name).rglob("*") if path.is_file()]
    return {path.relative_to(run).as_posix(): _digest(path) for path in sorted(files)}


def newest_checkpoint_file(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*.safetensors"))


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of change of every file of a run."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (_digest(path), path.stat().st_mtime_ns) for path in sorted(files)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
