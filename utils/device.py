"""Which device, which precision, and how much of the GPU is still taken."""

import gc
import os
import sys
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs

from utils.errors import UserError
from utils.locks import rank_and_number

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def pick_device(cuda: int) -> torch.device:
    """The GPU numbered `cuda`, or the CPU for −1 and where there is no GPU.

    Raises UserError if there are GPUs but none of that number.
    """
    if cuda < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print(f"notice: --cuda {cuda}, but PyTorch finds no GPU; the CPU is used (--cuda -1 asks for it)")
        return torch.device("cpu")
    if cuda >= torch.cuda.device_count():
        raise UserError(f"--cuda {cuda}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device("cuda", cuda)


def pick_precision(precision: str, device: torch.device) -> str:
    """ "auto" is fp16 on a GPU and fp32 on the CPU, where half precision does not pay."""
    if precision != "auto":
        return precision
    return "fp16" if device.type == "cuda" else "fp32"


def start_accelerator(
    cuda: int, precision: str, accumulation: int, seed: int, idle_parameters: bool = False, static_graph: bool = False
) -> tuple[Accelerator, str]:
    """Accelerate on the device that `--cuda` names, in the precision that `--precision` names; also that precision.

    Under `accelerate launch` each process takes its own device, and the first one alone prints. Batches are drawn in an
    order that `seed` and the epoch decide. `idle_parameters`: some parameters have no part in the loss at times.
    `static_graph`: each step has the same parameters in the loss; they may stand outside `forward`, or never be used.
    """
    only_first_prints()
    device = pick_device(cuda)
    if device.type == "cuda" and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    precision = pick_precision(precision, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulation,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=idle_parameters, static_graph=static_graph)
        ],
    )
    return accelerator, precision


def only_first_prints() -> None:
    """Silence all processes of a run but the first; print a notice where Accelerate started one in place of several."""
    rank, n = rank_and_number()
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the script runs
    if n == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        print("notice: accelerate started one process where several were asked for; --multi_gpu makes it start them")


def scaler_state(accelerator: Accelerator) -> dict | None:
    """What --resume needs of the gradient scaler of half precision; None without one."""
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else None


def resume_optimizer(accelerator: Accelerator, optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Give optimiser and gradient scaler (of half precision) what an interrupted run left; {} changes nothing."""
    if state:
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])


def free_gpu_memory(device: torch.device) -> float:
    """Drop what nobody refers to and return what is still held on the GPU, in MiB (0 on the CPU)."""
    gc.collect()
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device) / 2**20


def end_processes(accelerator) -> None:
    """End what several processes share.

    The wrapper of a model holds their group. Were it the last to hold it, its end would wait for gloo's thread while it
    keeps Python's lock, which that thread waits for: one run in some hung when all was done. So the wrapper goes first.
    """
    if accelerator.num_processes == 1:
        return
    accelerator.free_memory()
    gc.collect()
    accelerator.end_training()
