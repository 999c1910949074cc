"""A training step of the CIFAR-10 net and of an ImageNet net, beside what people would use; how it grows with depth."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, checkout, module_at, training
from papers.resnet.model import ResNet

BATCH, LARGE_BATCH = 128, 8


def momentum(model: nn.Module, fused: bool) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4, fused=fused)


def batch(n: int, side: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, side, side), torch.randint(classes, (n,))


def ours(depth: int = 20, large: bool = False) -> Step:
    x, y = batch(*((LARGE_BATCH, 224, 1000) if large else (BATCH, 32, 10)))
    net = ResNet(depth, *(("imagenet", "B", 1000) if large else ("cifar", "A", 10)))
    net.initialise(0)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.to(memory_format=torch.channels_last)
    return training(net, momentum(net, True), lambda: F.cross_entropy(net(x), y))


def akamaster() -> Step:
    path = checkout("pytorch_resnet_cifar10", "https://github.com/akamaster/pytorch_resnet_cifar10")
    net, (x, y) = module_at(path / "resnet.py", "akamaster_resnet").resnet20(), batch(BATCH, 32, 10)
    return training(net, momentum(net, False), lambda: F.cross_entropy(net(x), y))


def transformers() -> Step:
    """With Figure 5's stride in the first layer of a bottleneck."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(num_labels=1000, downsample_in_bottleneck=True)  # type: ignore[call-arg]
    net = ResNetForImageClassification(config)
    x, y = batch(LARGE_BATCH, 224, 1000)
    return training(net, momentum(net, False), lambda: F.cross_entropy(net(x).logits, y))


CASES = {
    "resnet20": Case(
        f"ResNet-20, 32x32, batch {BATCH}, SGD with momentum",
        ours,
        {"akamaster's ResNet-20": Peer("pytorch_resnet_cifar10", akamaster)},
        "momentum",
    ),
    "resnet50": Case(
        f"ResNet-50, 224x224, batch {LARGE_BATCH}, SGD with momentum",
        lambda: ours(50, large=True),
        {"ResNetForImageClassification": Peer("transformers", transformers)},
        "momentum",
    ),
}
GROWTH = Growth("layers", (20, 56, 110), ours)
