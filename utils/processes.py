"""Several processes of one run: which rows are whose, and all rows again from everybody's."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor


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


def mean_over(accelerator: Accelerator, value: float) -> float:
    """The mean of a number over processes."""
    return float(accelerator.reduce(torch.tensor(value, dtype=torch.double, device=accelerator.device), "mean"))
