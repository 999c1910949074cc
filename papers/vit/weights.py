"""Pre-trained weights to fine-tune from: the official code's .npz files, or a state our own runs have left."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from papers.vit.model import ViT, interpolated


def from_flax(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Our state from the official code's names (a pure ViT, models_vit.py)."""
    found = {}
    for key, array in arrays.items():
        value = torch.from_numpy(np.ascontiguousarray(array)).float()
        name = key.removeprefix("Transformer/")
        if name.startswith("encoderblock_"):
            block, module, *rest = name.split("/")
            start = f"blocks.{block.removeprefix('encoderblock_')}."
            if module.startswith("MultiHead"):
                part, kind = rest
                if part == "out":
                    found[f"{start}attention.out." + ("weight" if kind == "kernel" else "bias")] = (
                        value.flatten(0, 1).T if kind == "kernel" else value
                    )
                else:
                    value = value.flatten(1).T if kind == "kernel" else value.flatten()
                    found[f"{start}{part}." + ("weight" if kind == "kernel" else "bias")] = value
            elif module.startswith("Mlp"):
                layer = {"Dense_0": "mlp1", "Dense_1": "mlp2"}[rest[0]]
                found[start + layer + (".weight" if rest[1] == "kernel" else ".bias")] = (
                    value.T if rest[1] == "kernel" else value
                )
            else:
                norm = {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2"}[module]
                found[start + norm + (".weight" if rest[0] == "scale" else ".bias")] = value
        elif name == "posembed_input/pos_embedding":
            found["tables.0"] = value
        elif name == "cls":
            found["class_token"] = value
        else:
            module, kind = name.split("/")
            module = {"encoder_norm": "norm"}.get(module, module)
            if value.ndim == 4:
                value = value.permute(3, 2, 0, 1)
            found[module + (".bias" if kind == "bias" else ".weight")] = value.T if value.ndim == 2 else value
    for start in {name.rpartition(".query")[0] for name in found if ".query" in name}:
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{start}.{part}.{kind}") for part in ("query", "key", "value")]
            found[f"{start}.attention.qkv.{kind}"] = torch.cat(parts)
    return found


def load(model: ViT, path: Path) -> None:
    """Put pre-trained weights into a model: all but the head, positions for its own number of patches (Section 3.2).

    Raises:
        UserError: no such file, or one of another network.
    """
    try:
        if path.suffix == ".npz":
            state = from_flax(dict(np.load(path)))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state)
    except FileNotFoundError:
        raise UserError(
            f"pre-trained weights {path} are not there; put the code's .npz (or a checkpoint's state.pt) of that name"
        ) from None
    except Exception as error:  # numpy, zip files and pickles each have errors of their own for what they cannot read
        raise UserError(f"{path} holds no weights ({type(error).__name__} while it was read)") from None
    for name in [name for name in state if name.startswith(("head.", "pre_logits."))]:
        del state[name]
    if "tables.0" in state and len(model.tables) and state["tables.0"].shape != model.tables[0].shape:
        state["tables.0"] = interpolated(state["tables.0"], model.tokens)
    try:
        left, extra = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} holds another network: {str(error).splitlines()[1].strip()}") from None
    left = [name for name in left if not name.startswith(("head.", "pre_logits."))]
    if left or extra:
        raise UserError(f"{path} holds another network: {', '.join([*left, *extra][:3])} do not match")
