"""The processes that train together: this one, or as many as a launcher (torchrun, accelerate launch) started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env

from edgekit.errors import UsageError

PRECISIONS = ("no", "bf16")
PATIENCE = timedelta(days=1)
"""How long processes wait for the one that asks a teacher or writes."""


def processes() -> PartialState:
    """Which of the processes this is, and the device that it trains on: CUDA's, unless ``accelerate launch --cpu``."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def accelerator_for(precision: str, accumulate: int) -> Accelerator:
    """accelerate's engine. ``precision`` "" takes the launcher's; ``accumulate``: parts of a batch on each process.

    Raises UsageError for a precision, or a way to spread a model over processes, that trainings do not run with.
    """
    precision = precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in PRECISIONS:
        raise UsageError(f"mixed_precision: '{precision}' is not one of {', '.join(PRECISIONS)}")
    processes()
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # an encoder's pooler has no gradient
    try:
        engine = Accelerator(
            mixed_precision=precision, gradient_accumulation_steps=accumulate, kwargs_handlers=[unused]
        )
    except ValueError as error:
        raise UsageError(f"mixed_precision: {precision} does not run here ({error}); leave it out") from error
    if engine.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(
            f"accelerate: is told to use {engine.distributed_type.value}; each process holds the whole model here: "
            "launch with --multi_gpu, or torchrun"
        )
    return engine


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, for a loop to end at a good place; a second Ctrl-C ends at once.

    A launcher sends what it got itself once more, as SIGTERM.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
