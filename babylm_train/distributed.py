"""Several processes under torchrun that share the rows of each update and agree on all else.

Every process draws the whole update, which (seed, epoch) alone decide, and takes rows rank, rank + world, ... of each
micro-batch; gradients and losses are summed over all. Only the main process, rank 0, writes or says anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from babylm_train.errors import InputError, PeerLost, arguments, one_line
from babylm_train.state import OneProcess

if TYPE_CHECKING:
    from torch import Tensor

    from babylm_train.state import Batch

RANK, WORLD, LOCAL = "RANK", "WORLD_SIZE", "LOCAL_RANK"  # what torchrun sets
SLURM = {RANK: "SLURM_PROCID", WORLD: "SLURM_NTASKS", LOCAL: "SLURM_LOCALID"}  # srun, where torchrun is not used
LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting", "recvValue failed")


@arguments(frozen=False)
class DataParallel(OneProcess):
    """Every process has the whole model; torchrun starts them and tells each its rank.

    Gradients are added up once an update, after its last micro-batch. torch's DistributedDataParallel begins during the
    backward pass, but puts its buckets in another order after the first update, and three or more processes then add up
    to other last bits (docs/CLUSTER.md): a run that goes on would not end with the bits of one that nobody stopped.
    timeout: seconds to wait for another process, as long as the main one may evaluate, save or export alone.
    """

    timeout: Annotated[float, Field(gt=0)]
    rank: int = field(default=0, init=False)
    world: int = field(default=1, init=False)
    local: int | None = field(default=None, init=False)

    def check(self) -> None:
        """Raises InputError: torchrun did not start this, or MASTER_ADDR is missing."""
        if RANK not in os.environ and "MASTER_ADDR" in os.environ:
            os.environ.update({name: os.environ[theirs] for name, theirs in SLURM.items() if theirs in os.environ})
        if missing := [name for name in (RANK, WORLD, LOCAL, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            start = "torchrun --standalone --nproc-per-node=2 -m babylm_train ..."
            raise InputError(f"distributed=ddp is started by torchrun, as in `{start}` ({missing[0]} is not set)")

    @contextlib.contextmanager
    def join(self, cuda: bool) -> Iterator[OneProcess]:
        """Waits for all of them. Raises PeerLost: one of them did not come."""
        import torch.distributed as dist

        self.check()
        self.rank, self.world, self.local = (int(os.environ[name]) for name in (RANK, WORLD, LOCAL))
        with peer_errors():
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=self.timeout))
        if not self.is_main:
            logging.disable(logging.WARNING)
            sys.stdout = open(os.devnull, "w", encoding="utf8")  # noqa: SIM115 - as long as the process
        yield self
        self.leave()

    @contextlib.contextmanager
    def first_on_machine(self) -> Iterator[None]:
        """See OneProcess."""
        if self.local:
            self.agree(False)
        yield
        if not self.local:
            self.agree(False)

    def share(self, value: Any = None) -> Any:
        """See OneProcess."""
        import torch.distributed as dist

        found = [value]
        with peer_errors():
            dist.broadcast_object_list(found, 0, device=_cpu())
        return found[0]

    def agree(self, flag: bool) -> bool:
        """See OneProcess."""
        import torch

        said = torch.tensor(float(flag))
        self.add(said)
        return bool(said.item())

    def add(self, *tensors: Tensor | None) -> None:
        """See OneProcess. Those of one type travel as one, always in the same order: a resumed run adds up alike."""
        import torch
        import torch.distributed as dist

        for dtype in dict.fromkeys(t.dtype for t in tensors if t is not None):
            found = [t for t in tensors if t is not None and t.dtype == dtype]
            flat = torch.cat([t.flatten() for t in found])
            with peer_errors():
                dist.all_reduce(flat)
            for tensor, summed in zip(found, flat.split([t.numel() for t in found]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def begin(self, model: Any) -> None:
        """See OneProcess. They are the main process's."""
        import torch
        import torch.distributed as dist

        self.seed = torch.initial_seed()
        with peer_errors():
            for parameter in model.parameters():
                dist.broadcast(parameter.data, 0)

    def deal(self, batches: list[Batch], update: int) -> list[Batch]:
        """Seeds by (seed, update, rank), so that a run goes on exactly without the others' generators being saved."""
        import torch

        if self.world > 1:
            drawn = int(np.random.SeedSequence([self.seed, update, self.rank]).generate_state(1)[0])
            random.seed(drawn)
            np.random.seed(drawn)  # noqa: NPY002 - what a user's code may draw from
            torch.manual_seed(drawn)
        return [batch.take(self.rank, self.world) for batch in batches]

    @contextlib.contextmanager
    def survive(self, save: Callable[[str], object]) -> Iterator[None]:
        """See OneProcess."""
        try:
            with peer_errors():
                yield
        except PeerLost as error:
            save(str(error))
            raise

    def leave(self) -> OneProcess:
        """See OneProcess."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
        return OneProcess()


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """What torch says where another process is gone becomes PeerLost."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST):
            raise
        raise PeerLost(f"another process of this run has ended ({one_line(error)[:200]})") from error
