"""How many threads torch uses, and compiled work, which lets go of the interpreter, on as many."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """torch on n threads inside, on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
