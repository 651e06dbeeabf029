"""Independent pieces of a computation on the threads that torch may use.

Batched eigendecompositions run one after another on a single thread, and small products gain little from threads inside
them. So whole pieces go to threads, as many as `torch.get_num_threads()`, and each computes with one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """`[function(item) for item in items]`, on several threads where the device is the CPU.

    Args:
        function: must not depend on what the other calls do.
        items: the pieces.
        device: where the tensors are; on an accelerator the pieces go one after another.

    An error in one piece is raised here, and pieces that have not begun are dropped.
    """
    # Asked first: the answer fixes the number of this thread, which the workers must not change.
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2 or device.type != "cpu":
        return [function(item) for item in items]
    graded = torch.is_grad_enabled()

    def call(item: Item) -> Result:
        with torch.set_grad_enabled(graded):
            return function(item)

    pool = ThreadPoolExecutor(min(threads, len(items)), initializer=_one_thread)
    try:
        return list(pool.map(call, items))
    finally:
        pool.shutdown(cancel_futures=True)
        # The workers' setting is theirs alone, but it is also what threads begun later would start with.
        torch.set_num_threads(threads)


def _one_thread() -> None:
    # A thread takes the common number when it is first asked, and would forget one that was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)
