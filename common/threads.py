"""Compiled work, which lets go of the interpreter, on as many threads as torch uses."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def each(task: Callable[..., object], tasks: Sequence[tuple[Any, ...]]) -> None:
    """Call task(*arguments) for all, in any order; the result must not depend on it, nor on the number of threads."""
    threads = min(torch.get_num_threads(), len(tasks))
    if threads <= 1:
        for arguments in tasks:
            task(*arguments)
    else:
        list(_workers(threads).map(lambda arguments: task(*arguments), tasks))
