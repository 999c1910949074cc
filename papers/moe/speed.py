"""The layer, forward and backward, beside transformers' Mixtral and Switch layers; how it grows with the experts."""

import torch

from common.speed import Case, Growth, Peer, Step
from papers.moe.timing import layers

TOKENS, D, HIDDEN, ACTIVE = 1024, 512, 1024, 4  # C.1: experts of 512-1024-512, four for a token


def of(kind: str, experts: int) -> Step:
    """One pass of a kind of layer over a batch of tokens; inputs, routing noise and weights get gradients."""
    torch.manual_seed(0)
    layer = layers(experts, D, HIDDEN, ACTIVE, torch.device("cpu"))[kind]
    if layer is None:
        raise ImportError("the installed transformers has no such layer")
    x = torch.randn(TOKENS, D)
    pull = torch.ones_like(x)

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x.detach().requires_grad_()).backward(pull)

    return Step(run)


def case(experts: int) -> Case:
    note = "one expert of four times the units a token"
    loop = {"MixtralSparseMoeBlock": Peer("transformers", lambda: of("mixtral", experts))}  # at 64 it takes 9 s
    return Case(
        f"{experts} experts of {D}-{HIDDEN}-{D}, {ACTIVE} for each of {TOKENS} tokens, forward and backward",
        lambda: of("ours", experts),
        {
            "loop over experts": Peer("torch", lambda: of("loop", experts)),
            **(loop if experts < 64 else {}),
            "MixtralSparseMoeBlock, grouped_mm": Peer("transformers", lambda: of("mixtral_grouped", experts)),
            "SwitchTransformersSparseMLP": Peer("transformers", lambda: of("switch", experts), note, same=False),
        },
        flops=(3.0 * 2 * TOKENS * D * (ACTIVE * 2 * HIDDEN + experts), 0.0),  # forward, and two products backward
    )


CASES = {f"experts-{n}": case(n) for n in (8, 64)}
GROWTH = Growth("experts", (8, 32, 128), lambda n: of("ours", n))
