"""The processes that share a run: one, or those that `accelerate launch` started, each on a device of its own.

Work is cut into blocks whose sizes do not depend on how many processes there are, so that results do not either.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.device import only_first_prints, pick_device
from utils.locks import rank_and_number
from utils.progress import progress

PATIENCE = timedelta(days=2)  # for one another: a share may take hours longer; who waits for a dead one is ended
T, R = TypeVar("T"), TypeVar("R")


@dataclass(frozen=True)
class Processes:
    """What one of them knows.

    device : torch.device. Its own. index, n : int. Which of how many it is.
    """

    device: torch.device
    index: int = 0
    n: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what all have made."""
        return self.index == 0

    def share(self, items: Iterable[T]) -> list[T]:
        """This one's part of what the first one lists: nothing is done twice, or by nobody."""
        items = list(items)
        if self.n > 1:
            (items,) = broadcast_object_list([items])
        return items[self.index :: self.n]

    def each(self, function: Callable[[Sequence[T]], R], items: Sequence[T], size: int, desc: str = "") -> list[R]:
        """`function` of each block of `size` items, in their order: every process does its share, and has all results.

        Results are pickled on their way, so tensors have to be on the CPU.
        """
        blocks = [items[k : k + size] for k in range(0, len(items), size)]
        mine = progress(blocks[self.index :: self.n], desc=desc, unit="batch", disable=not (desc and self.first))
        results = [function(block) for block in mine]
        if self.n == 1:
            return results
        of_all = gather_object([results])
        return [of_all[k % self.n][k // self.n] for k in range(len(blocks))]

    def gathered(self, items: list[T]) -> list[T]:
        """What all have, behind one another."""
        return gather_object(items) if self.n > 1 else items

    def first_ahead(self) -> AbstractContextManager:
        """Let the first one through before the others, which find what it has put into a cache."""
        return PartialState().main_process_first() if self.n > 1 else nullcontext()

    def wait(self) -> None:
        """Wait until all are here."""
        if self.n > 1:
            PartialState().wait_for_everyone()

    def end(self) -> None:
        """Wait for all, and end what they share: the last line of a script."""
        if self.n > 1:
            self.wait()
            PartialState().destroy_process_group()


def start_processes(cuda: int) -> Processes:
    """This process among those of its run, on the device that `--cuda` names, or its own of several GPUs.

    Only the first one prints.
    """
    only_first_prints()
    device = pick_device(cuda)
    if rank_and_number()[1] == 1:
        return Processes(device)
    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return Processes(state.device, state.process_index, state.num_processes)


# ---------------------------------------------------------------- tensors, in training


def share(accelerator: Accelerator, rows: Sequence, least: int = 1) -> list:
    """This process's rows: of P processes every P-th one. All get as many; the first rows of all fill what lacks.

    least : int. Rows that each process gets at least: batch normalisation needs two.
    """
    n, rank = accelerator.num_processes, accelerator.process_index
    if n == 1 or not len(rows):
        return list(rows)
    return [rows[place % len(rows)] for place in range(rank, n * max(least, -(-len(rows) // n)), n)]


def gathered(accelerator: Accelerator, own: Tensor) -> Tensor:
    """(P · B, …) rows of all P processes, from the (B, …) of each one's `share`: all in order, then what filled up.

    The gradient of a process's own rows is P times what it is. So where each process computes one loss of all rows, the
    mean of their gradients, which DDP takes, is the gradient that one process would have.
    """
    n, rank = accelerator.num_processes, accelerator.process_index
    if n == 1 or not len(own):
        return own
    parts = accelerator.gather(own.detach().to(accelerator.device)).to(own.device).unflatten(0, (n, -1)).unbind()
    mine = own.detach() + n * (own - own.detach())
    return torch.stack([*parts[:rank], mine, *parts[rank + 1 :]], dim=1).flatten(0, 1)


def part(accelerator: Accelerator, rows: Sequence) -> tuple[Sequence, float]:
    """This process's rows of a batch, at least one, and the weight of their mean loss.

    The mean over processes of loss · weight is the mean loss of the batch. Where rows lack, a process takes one for
    nothing.
    """
    own = rows[accelerator.process_index :: accelerator.num_processes]
    return (own, len(own) * accelerator.num_processes / len(rows)) if len(own) else (rows[:1], 0.0)


def dealt(
    accelerator: Accelerator, dataset: Dataset, size: int, seed: int, collate: Callable[[list], dict] = default_collate
) -> DataLoader:
    """Batches of `size` items a process, in an order of `seed` and `set_epoch`; each process has its `part` of a batch.

    Batches are what `collate` makes, with the `weight` of their mean loss. Accelerate's own loaders fill the last
    batches with items that then count twice.
    """

    def own(rows: list[int]) -> dict[str, Any]:
        rows, weight = part(accelerator, rows)
        return collate([dataset[row] for row in rows]) | {"weight": weight}

    loader = DataLoader(range(len(dataset)), size * accelerator.num_processes, shuffle=True, collate_fn=own)
    how = {"put_on_device": True, "use_seedable_sampler": True, "data_seed": seed}
    return prepare_data_loader(loader, accelerator.device, num_processes=1, process_index=0, **how)


def weight_by(accelerator: Accelerator, counted: Tensor, weight: float) -> float | Tensor:
    """The weight of a process's mean over what it has counted, so that the mean over processes is the mean over all.

    counted : bool tensor, such as the tokens of answers. weight : float. Of its rows, by `part`: 0 where none is own.
    """
    if accelerator.num_processes == 1:
        return weight
    n = counted.sum() * float(weight > 0)
    return n / accelerator.reduce(n, "mean")


def mean_over(accelerator: Accelerator, value: float) -> float:
    """The mean of a number over processes."""
    return float(accelerator.reduce(torch.tensor(value, dtype=torch.double, device=accelerator.device), "mean"))
