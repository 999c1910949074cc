"""Counts at the paper's own scale: parameters, visible patches, what the decoder and mask tokens cost; and what digits'
raw pixels are worth to a vote of neighbours.

Networks are built on torch's meta device; `FlopCounterMode` counts their matrix products.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.cost import learned, parameters
from common.data import images
from common.errors import UserError
from papers.mae.config import MNIST, PRESETS, Config
from papers.mae.model import MAE, Classifier, Encoder, votes

RATIOS = ("table1", "timing", "cifar", "laptop")  # presets whose cost with mask tokens in the encoder is compared


def build_encoder(cfg: Config) -> Encoder:
    """The encoder of a configuration, on the current device, not initialised."""
    return Encoder(cfg.resolution, cfg.patch, cfg.width, cfg.depth, cfg.heads, cfg.dialect, cfg.pool, cfg.channels)


def build(cfg: Config) -> MAE:
    """The whole autoencoder."""
    return MAE(
        build_encoder(cfg),
        e=cfg.decoder_width,
        decoder_depth=cfg.decoder_depth,
        decoder_heads=cfg.decoder_heads,
        mask_ratio=cfg.mask_ratio,
        encoded_masks=cfg.mask_tokens == "encoder",
        normalised=cfg.target == "normalised",
        loss_on_all=cfg.loss_on == "all",
        channels=cfg.channels,
    )


def multiply_adds(cfg: Config, class_tokens: int = 1) -> int:
    """Of a forward pass for one picture, as the code computes it: all patches embedded, all tokens predicted."""
    n, d, e, pixels = (cfg.resolution // cfg.patch) ** 2, cfg.width, cfg.decoder_width, 3 * cfg.patch**2
    seen = (n if cfg.mask_tokens == "encoder" else int(n * (1 - cfg.mask_ratio))) + class_tokens

    def block(tokens: int, width: int) -> int:
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    encoder = n * pixels * d + cfg.depth * block(seen, d)
    decoder = cfg.decoder_depth * block(n + class_tokens, e) + (n + class_tokens) * e * pixels
    return encoder + seen * d * e + decoder


def counted(cfg: Config) -> int:
    """Multiply-adds of our forward pass, by torch's counter."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        n = (cfg.resolution // cfg.patch) ** 2
        build(cfg)(torch.empty(1, 3, cfg.resolution, cfg.resolution), torch.empty(1, n))
    return counter.get_total_flops() // 2


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data set read -> fingerprint); what needs data that cannot be read is left out."""
    counts: dict[str, float] = {}
    for size in ("b", "l", "h"):
        cfg = PRESETS[f"table3-{size}"]
        with torch.device("meta"):
            classifier, model = Classifier(build_encoder(cfg), cfg.classes), build(cfg)
        counts[f"parameters/vit-{size}"] = parameters(classifier)
        counts[f"millions/vit-{size}"] = parameters(classifier) / 1e6
        counts[f"millions_without_head/vit-{size}"] = (parameters(classifier) - parameters(classifier.head)) / 1e6
        counts[f"parameters/mae-{size}"] = learned(model)
        counts[f"visible_patches/vit-{size}"] = model.k
        counts[f"visible_percent/vit-{size}"] = 100 * model.k / model.encoder.g**2
    for name in RATIOS:
        cfg = PRESETS[name]
        masks = replace(cfg, mask_tokens="encoder")
        counts[f"gmacs/{name}"] = multiply_adds(cfg) / 1e9
        counts[f"flops_ratio/{name}"] = multiply_adds(masks) / multiply_adds(cfg)
        counts[f"flops_ratio_of_patches/{name}"] = multiply_adds(masks, 0) / multiply_adds(cfg, 0)
        counts[f"flops_ratio_ours/{name}"] = counted(masks) / counted(cfg)
    cfg = PRESETS["table1"]
    n, d, e = 197, cfg.width, cfg.decoder_width
    encoder, decoder = cfg.depth * (12 * d * d + 2 * n * d), cfg.decoder_depth * (12 * e * e + 2 * n * e)
    counts["decoder_percent_per_token/weights"] = 100 * cfg.decoder_depth * e * e / (cfg.depth * d * d)
    counts["decoder_percent_per_token"] = 100 * (decoder + e * (d + 3 * cfg.patch**2)) / encoder
    try:
        digits = images.load(MNIST, data_dir)
    except UserError:
        return counts, {}
    known = digits.train.flatten(1).double()  # squared distances of grey levels are whole numbers: exact
    right = sum(
        int((votes(x.flatten(1).double(), known, digits.train_labels, 5, 10).argmax(1) == y).sum())
        for x, y in zip(digits.test.split(500), digits.test_labels.split(500), strict=True)
    )
    counts["test_accuracy/pixels-5nn"] = 100 * right / len(digits.test)
    return counts, {digits.name: digits.fingerprint}
