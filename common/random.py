"""Random numbers as a pure function of a key.

Nothing here has state to save: a resumed run, another number of processes or other seeds trained in the same stack
draw the same numbers for the same (seed, purpose, step).
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def integer(*key: int | str) -> int:
    """63 random bits that depend on the key alone (BLAKE2b), the same on every platform."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str, device: "str | torch.device" = "cpu") -> "torch.Generator":
    """A torch generator that starts where the key says, e.g. `generator(seed, "dropout", step)`."""
    import torch

    return torch.Generator(device=device).manual_seed(integer(*key))
