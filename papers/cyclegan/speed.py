"""A step of generators and discriminators beside one call a picture; how it grows with the side."""

import itertools
from functools import partial

import torch
from torch import Tensor, nn

from common.speed import Case, Growth, Peer, Step, checkout, module_at
from papers.cyclegan.model import Discriminator, Generator, Judgement, Networks, Pool, Translation, l1, lsgan

WIDTH, BLOCKS, SIDE = 64, 6, 128  # the paper's nets for 128x128, batch 1


def adam(fused: bool) -> partial[torch.optim.Adam]:
    return partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=fused)


def ours(side: int = SIDE) -> Step:
    generators = Networks(x=Generator(WIDTH, BLOCKS), y=Generator(WIDTH, BLOCKS))
    discriminators = Networks(x=Discriminator(WIDTH), y=Discriminator(WIDTH))
    for networks, name in ((generators, "generators"), (discriminators, "discriminators")):
        networks.initialise(0, name, 0.02)
    g_optimizer, d_optimizer = (adam(True)(n.parameters()) for n in (generators, discriminators))
    translation, judgement = Translation(generators, discriminators, True, 10.0, 10.0, 0.0), Judgement(discriminators)
    pools, numbers = [Pool(50, (3, side, side)) for _ in range(2)], torch.Generator().manual_seed(0)
    x, y = (2 * torch.rand(1, 3, side, side) - 1 for _ in range(2))
    step = [0]

    def run() -> None:
        discriminators.requires_grad_(False)
        loss, *fakes, _ = translation(x, y)
        g_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        g_optimizer.step()
        discriminators.requires_grad_(True)
        old_x, old_y = (pool.query(fake, step[0], numbers) for pool, fake in zip(pools, fakes, strict=True))
        loss, _ = judgement(x, old_x, y, old_y)
        d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        d_optimizer.step()
        step[0] += 1

    return Step(run, sum(p.numel() for n in (generators, discriminators) for p in n.parameters()))


def one_call_a_picture(G: nn.Module, F: nn.Module, D_X: nn.Module, D_Y: nn.Module) -> Step:
    """The order of calls of the official code's cycle_gan_model.py, without the identity loss."""
    makers, judges = [G, F], [D_X, D_Y]
    g_optimizer = adam(False)(itertools.chain(*(net.parameters() for net in makers)))
    d_optimizer = adam(False)(itertools.chain(*(net.parameters() for net in judges)))
    x, y = (2 * torch.rand(1, 3, SIDE, SIDE) - 1 for _ in range(2))
    pools, numbers = [Pool(50, (3, SIDE, SIDE)) for _ in range(2)], torch.Generator().manual_seed(0)
    step = [0]

    def judged(net: nn.Module, true: Tensor, fake: Tensor) -> None:
        (0.5 * (lsgan(net(true), 1.0) + lsgan(net(fake), 0.0))).backward()

    def run() -> None:
        fake_y = G(x)
        back_x = F(fake_y)
        fake_x = F(y)
        back_y = G(fake_x)
        for net in judges:
            net.requires_grad_(False)
        g_optimizer.zero_grad()
        loss = lsgan(D_Y(fake_y), 1.0) + lsgan(D_X(fake_x), 1.0) + 10 * l1(back_x, x) + 10 * l1(back_y, y)
        loss.backward()
        g_optimizer.step()
        for net in judges:
            net.requires_grad_(True)
        d_optimizer.zero_grad()
        judged(D_Y, y, pools[1].query(fake_y.detach(), step[0], numbers))
        judged(D_X, x, pools[0].query(fake_x.detach(), step[0], numbers))
        d_optimizer.step()
        step[0] += 1

    return Step(run, sum(p.numel() for net in (*makers, *judges) for p in net.parameters()))


def usual(net: nn.Module) -> nn.Module:
    """The same with `nn.InstanceNorm2d`, and every layer's numbers in the usual order."""
    for module in list(net.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.GroupNorm):
                setattr(module, name, nn.InstanceNorm2d(layer.num_channels))
    return net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def plain() -> Step:
    """The layers as torch.nn has them, in the order of calls that is usual."""
    nets = [Generator(WIDTH, BLOCKS), Generator(WIDTH, BLOCKS), Discriminator(WIDTH), Discriminator(WIDTH)]
    return one_call_a_picture(*map(usual, nets))


def official() -> Step:
    path = checkout("pytorch-CycleGAN-and-pix2pix", "https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix")
    networks = module_at(path / "models" / "networks.py", "official_networks")
    norm = partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    makers = [networks.ResnetGenerator(3, 3, WIDTH, norm_layer=norm, n_blocks=BLOCKS) for _ in range(2)]
    judges = [networks.NLayerDiscriminator(3, WIDTH, 3, norm_layer=norm) for _ in range(2)]
    return one_call_a_picture(*makers, *judges)


CASES = {
    "128": Case(
        f"both pairs of nets, {SIDE}x{SIDE}, batch 1, a pool of 50, Adam",
        ours,
        {
            "torch.nn, one call a picture": Peer("torch", plain),
            "official networks": Peer("pytorch-CycleGAN-and-pix2pix", official),
        },
        "adam",
    )
}
GROWTH = Growth("pixels a side", (64, 128, 256), ours)
