"""Many processes as one: who they are, what they agree on, and how a process is told that another one is gone.

    torchrun --nproc-per-node 8 -m carrara train RECIPE

Every process runs the same program; `join` makes them a `Team` from what torchrun has put into the environment. Not
standard: whatever decides a step (the clock, a request to stop, whether a loss is finite) is agreed on, so that no
process ever waits in a collective that another one does not enter. One process is a team without a process group: every
method is then the identity.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from carrara.nn.sequence import SequenceGroup
from carrara.training.config import Parallel

PATIENCE = timedelta(days=7)
"""How long the others wait for work that one process does alone (`alone_first`)."""

_groups: dict[str, Any] = {}


class Lost(RuntimeError):
    """Another process of the run has ended or does not answer; its own error says why."""


@dataclass(frozen=True)
class Team:
    """This process among those of the run. `sequence` neighbours work on the same clips, each on some of the tokens."""

    rank: int = 0
    size: int = 1
    sequence: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes logs, pictures and models."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def shares(self) -> int:
        """Into how many parts a batch is split."""
        return self.size // self.sequence

    @property
    def share(self) -> int:
        """Which of them is this process's."""
        return self.rank // self.sequence

    def clock(self, clock: Callable[[], float]) -> Callable[[], float]:
        """The first process's clock, for all of them; everyone must ask at the same places."""
        return clock if self.alone else lambda: self.told(clock())

    def told(self, value: float) -> float:
        """What the first process says."""
        if self.alone:
            return value
        said = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(said, 0)
        return float(said)

    def any(self, flag: bool) -> bool:
        """Whether it holds for at least one process."""
        if self.alone:
            return flag
        said = torch.tensor(float(flag))
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, elementwise; the tensor itself where there is one."""
        return values if self.alone else self.sum(values) / self.size

    def sum(self, values: Tensor) -> Tensor:
        if self.alone:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def copy_first(self, tensor: Tensor) -> None:
        """Give a tensor the first process's values, in place, whatever its layout."""
        if not self.alone:
            values = tensor.contiguous()
            dist.broadcast(values, 0)
            tensor.copy_(values)

    def wait(self) -> None:
        """Until everyone is here."""
        self.any(False)

    def sequence_group(self) -> SequenceGroup | None:
        """The neighbours that share this process's clips; None where it has them to itself."""
        if self.sequence == 1:
            return None
        name = f"sequence-{self.sequence}"
        if name not in _groups:  # every process must make all groups, in the same order
            for share in range(self.shares):
                ranks = list(range(share * self.sequence, (share + 1) * self.sequence))
                group = dist.new_group(ranks)
                if self.rank in ranks:
                    _groups[name] = group
        return SequenceGroup(_groups[name], self.rank % self.sequence, self.sequence)


def place() -> tuple[int, int, int]:
    """Rank, number of processes, and rank within the machine, by the environment: (0, 1, 0) without torchrun or srun.

    Raises ValueError for an environment that names processes but not where they meet.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1, 0
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(
                f"WORLD_SIZE={size} but {name} is not set; start with "
                f"`torchrun --nproc-per-node {size} -m carrara train ...`"
            )
    return int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"])


def use_own_gpu() -> None:
    """Let "cuda" be this process's own GPU of its machine. Raises ValueError where there are fewer GPUs."""
    _, size, local = place()
    if size == 1 or not torch.cuda.is_available():
        return
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU: torch sees {torch.cuda.device_count()}; "
            "start as many processes as there are GPUs (--nproc-per-node)"
        )
    torch.cuda.set_device(local)


def join(parallel: Parallel | None = None) -> Team:
    """The team of this process. Raises ValueError for settings that the number of processes cannot meet."""
    parallel = parallel or Parallel()
    rank, size, _ = place()
    if size % parallel.sequence:
        raise ValueError(
            f"parallel.sequence={parallel.sequence} with {size} process{'es' * (size > 1)}: the number of processes "
            "must be a multiple of it; start more (torchrun --nproc-per-node) or set it to 1"
        )
    if size > 1 and not dist.is_initialized():
        use_own_gpu()
        # What is agreed on between steps travels by gloo, so that nobody waits for a GPU's queue.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(minutes=parallel.timeout_minutes))
        except RuntimeError as error:
            raise Lost(
                f"process {rank} of {size} could not meet the others at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']} ({_first_sentence(error)})"
            ) from error
        atexit.register(_leave)
    return Team(rank, size, parallel.sequence)


def _leave() -> None:
    """Close the group before the interpreter goes: its threads, left running, abort a process that ends well."""
    _groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def others_watched(team: Team) -> Iterator[None]:
    """Turn what torch says of a broken collective into `Lost`, which says what it means and what to do."""
    try:
        yield
    except RuntimeError as error:
        if team.alone or not _is_broken(error):
            raise
        raise Lost(
            f"process {team.rank} of {team.size} lost the others ({_first_sentence(error)}); look for the first error "
            "above, of the process that ended; run the same command again to go on from the last checkpoint"
        ) from error


def _is_broken(error: RuntimeError) -> bool:
    """Whether a collective failed, rather than this process's own work."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(
        word in text for word in ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")
    )


def _first_sentence(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0]


@contextmanager
def alone_first() -> Iterator[None]:
    """What is inside is done by the first process while the others wait; then by them, who find it done.

    For files that all processes need and one should make, such as a cache of latents. If the first one fails, the
    others say so and end too.
    """
    rank, size, _ = place()
    if size == 1:
        yield
        return
    join()
    store = dist.distributed_c10d._get_default_store()
    number = _groups["turns"] = _groups.get("turns", 0) + 1
    key = f"carrara/alone-{number}"
    if rank == 0:
        try:
            yield
        except BaseException:
            store.set(key, "failed")
            raise
        store.set(key, "done")
        return
    start = time.monotonic()
    while not store.check([key]):  # the store dies with the first process, and then this raises
        if time.monotonic() - start > PATIENCE.total_seconds():
            raise Lost(f"process {rank} waited {PATIENCE.days} days for the first one")
        time.sleep(0.5)
    if store.get(key) != b"done":
        raise Lost(f"process {rank} of {size}: the first process failed at what all wait for; see its error")
    yield
