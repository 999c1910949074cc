"""Train DCGAN, its baseline and its variants; judge what they draw and what the discriminator has learnt."""

if __name__ == "__main__":  # --help and --dry-run answer before torch is loaded; training runs in the imported module
    from common.cli import launch

    launch("dcgan")

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import extractors, pictures
from common.data import images
from common.fit import stop_unless_finite
from common.judging import Nearest, look, path_length, scores, trimmed_mean
from common.run import Run
from papers.dcgan import model as nets
from papers.dcgan.config import Config
from papers.dcgan.data import Minibatches, latents, levels, split
from papers.dcgan.features import fix_statistics, protocol
from papers.dcgan.sample import Sampler, save_arithmetic, save_grid, save_walk

SEEDS = "single"  # one seed after the other; processes share each batch
LOG_EVERY = 100  # updates


def build(cfg: Config, side: int, colours: int) -> tuple[nn.Module, nn.Module]:
    """(G, D), not initialised.

    Raises:
        UserError: the net does not fit the pictures.
    """
    norm, seen = (
        nets.norm_layer(cfg.batch_norm, cfg.bn_affine, running=running) for running in (False, cfg.model == "conv")
    )
    if cfg.model == "conv":
        nets.check_shape(cfg.model, side, colours, 32, 3)
        of_g, of_d = nets.maps32(cfg.width)
        return nets.Generator(norm, cfg.latents, 4 * cfg.width, of_g, 3), nets.Discriminator(seen, of_d, 3)
    nets.check_shape(cfg.model, side, colours, side // 4 * 4, 1)
    if cfg.model == "gan":
        return nets.FullGenerator(norm, cfg.latents, cfg.full, side), nets.FullDiscriminator(norm, cfg.full, side)
    return (
        nets.ConditionalGenerator(norm, cfg.latents, cfg.width, cfg.full, side),
        nets.ConditionalDiscriminator(norm, cfg.width, cfg.full, side),
    )


def decay(cfg: Config, epoch: int) -> float:
    """Multiplier of lr: 1, then down by 1 / decay_epochs after every epoch from the second of the decay on (code)."""
    return 1 - max(0, epoch - cfg.constant_epochs) / max(1, cfg.decay_epochs)


def real(score: Tensor) -> Tensor:
    """-log sigmoid: cross-entropy of logits that should say "real"; of -score, "generated"."""
    return F.softplus(-score).mean()


def train(cfg: Config, run: Run) -> None:
    """Train with one seed, and judge the last iterate."""
    read, seed = images.load(cfg.dataset, run.data_dir), run.seeds[0]
    run.read(cfg.dataset, read.fingerprint)
    (x_train, y_train), (x_held, y_held) = split(
        read.train.to(run.device), read.train_labels.to(run.device), (cfg.train_images, cfg.validation_images), seed
    )
    x_test, y_test = levels(read.test.to(run.device), 0), read.test_labels.to(run.device)
    if cfg.model == "none":
        list(run.steps(0, {}))
        blocks = zip(x_train.split(Nearest.BLOCK), y_train.split(Nearest.BLOCK), strict=True)
        errors = nn_errors(run, x_test, y_test, [(len(x_train), ((levels(x, 0), y) for x, y in blocks))])
        run.finish([errors])
        return

    g, d = build(cfg, read.train.shape[1], read.train.shape[3])
    for net, name in ((g, "generator"), (d, "discriminator")):
        nets.initialise(net, cfg.init_sd, seed, name)
        net.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = Minibatches(x_train, y_train, cfg.batch_size, seed, g.low, run.share)  # type: ignore[arg-type]
    total = (cfg.constant_epochs + cfg.decay_epochs) * batches.per_epoch
    adam = partial(
        torch.optim.Adam, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.l2, fused=True
    )  # coupled decay: L2 x weight is added to the gradient, as in the code
    g_adam, d_adam = adam(g.parameters()), adam(d.parameters())
    wide_g, wide_d = run.wrapped(g), run.wrapped(d)
    sampler = Sampler(g, cfg.latents, int(y_train.max()) + 1, cfg.batch_size, seed, run.device)

    def curve(step: int) -> None:
        if cfg.model != "conv":
            made = sampler.blocks(run, "validation", 0, cfg.eval_samples)
            error = nn_errors(run, levels(x_held, 0), y_held, [(cfg.eval_samples, made)])
            run.log(step, validation_nn_error=error[f"nn_error_{cfg.eval_samples}"])
        if run.main:
            save_grid(run.folder / f"samples/{step + 1:06d}.png", sampler)

    state = {"generator": g, "discriminator": d, "g_adam": g_adam, "d_adam": d_adam}
    for step in run.steps(total, state):
        for group in (*g_adam.param_groups, *d_adam.param_groups):
            group["lr"] = cfg.lr * decay(cfg, step // batches.per_epoch)
        logged = step % LOG_EVERY < 2  # one update of each net
        x, y = batches(step)
        z = run.share(latents(batches.size(step), cfg.latents, run.device, seed, "z", step))
        if step % 2 == 0:  # code: G on one minibatch (of which it sees the labels), D on the next
            g_adam.zero_grad(set_to_none=True)
            with run.accelerator.no_sync(wide_d):
                loss = real(wide_d(wide_g(z, y), y))
                run.accelerator.backward(loss, inputs=list(g.parameters()))  # D's own gradients are not wanted
            stop_unless_finite(run, step, loss, g, g_adam, logged)
            g_adam.step()
        else:
            d_adam.zero_grad(set_to_none=True)
            with torch.no_grad():
                drawn = wide_g(z, y)
            loss = real(wide_d(x, y)) + real(-wide_d(drawn, y))  # two passes: each batch has its own statistics
            run.accelerator.backward(loss)
            stop_unless_finite(run, step, loss, d, d_adam, logged)
            d_adam.step()
        if logged or step >= total - 2:
            run.log(step, **{"d_loss" if step % 2 else "g_loss": run.mean(loss.detach())})
        if (step + 1) % (cfg.eval_epochs * batches.per_epoch) == 0 or step == total - 1:
            curve(step)

    metrics: dict[str, float] = {}
    if cfg.nn_samples:
        starts = (0, *cfg.nn_samples)
        streams = [
            (end, sampler.blocks(run, "test", start, end)) for start, end in zip(starts, cfg.nn_samples, strict=False)
        ]
        metrics |= nn_errors(run, x_test, y_test, streams)
    if cfg.judge_samples:
        metrics |= judge(cfg, run, sampler, x_test)
    if cfg.svm_c:
        metrics |= svm(cfg, run, d, x_train)
    if run.main:
        save_grid(run.picture("grid", "Samples at fixed latents, a row for each class"), sampler)
        save_walk(run.picture("walk", "From one latent to another, a row for each class (Figure 4)"), sampler)
        if cfg.model != "conv":
            alt = "Three exemplars of each of three concepts, their arithmetic and its neighbourhood (Figure 7)"
            save_arithmetic(run.picture("arithmetic", alt), sampler)
        sheets = sorted((run.folder / "samples").glob("*.png"))  # one at least, after the last step
        alt = "A sample of each class at a fixed latent, as training goes on from left to right"
        pictures.over_time(run.picture("progress", alt), sheets, read.train.shape[2])
    run.finish([metrics])


def nn_errors(
    run: Run, queries: Tensor, labels: Tensor, streams: Iterable[tuple[int, Iterable[tuple[Tensor, Tensor]]]]
) -> dict[str, float]:
    """Percent of wrong nearest neighbours after each stream of references, whose total it is named by."""
    nearest, metrics = Nearest(queries.flatten(1)), {}
    for n, blocks in streams:
        for x, y in blocks:
            nearest.add(x.flatten(1), y)
        metrics[f"nn_error_{n}"] = nearest.error(run, labels)
    return metrics


def judge(cfg: Config, run: Run, sampler: Sampler, x_test: Tensor) -> dict[str, float]:
    """Scores by the project's own classifier, and the length of straight paths between latents."""
    extractor, n = extractors.classifier(run, cfg.dataset), cfg.judge_samples
    samples = look(run, extractor, n, cfg.batch_size, lambda part: sampler("judged", part)[0])
    real = look(run, extractor, min(n, len(x_test)), cfg.batch_size, lambda part: x_test[part])
    metrics = scores(extractor.name, real, samples, "test")
    if not cfg.path_pairs:
        return metrics
    lengths = [
        path_length(partial(sampler.draw, y=y), lambda x: extractor(x)[0], start, end, at)
        for y, start, end, at in sampler.paths(cfg.path_pairs)
    ]
    return metrics | {f"path_length_{extractor.name}_n{cfg.path_pairs}": trimmed_mean(torch.cat(lengths))}


def svm(cfg: Config, run: Run, d: nn.Module, x_train: Tensor) -> dict[str, float]:
    """Table 1 on the discriminator as it is, every process for itself."""
    assert isinstance(d, nets.Discriminator)
    name = cfg.svm_dataset or cfg.dataset
    read = images.load(name, run.data_dir)
    run.read(name, read.fingerprint)
    fix_statistics(d, [levels(x, -1) for x in x_train.split(cfg.batch_size)])

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        found = [d.features(levels(x.to(run.device), -1)) for x in pictures.split(500)]
        return F.pad(torch.cat(found), (0, 1), value=1.0)  # a column of ones: the bias

    train = features(read.train), read.train_labels.to(run.device)
    test = features(read.test), read.test_labels.to(run.device)
    return protocol(train, test, cfg.svm_c, cfg.svm_per_class, cfg.svm_draws, run.seeds[0])
