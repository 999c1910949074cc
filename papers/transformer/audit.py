"""Counts at the paper's own scale: parameters of Table 3, Table 1, Table 2's compute, Eq. 3 and Section 3.5.

The paper's "about 37,000" tokens give 2 million parameters too few in each row; one and the same 41,100 gives all the
rows of the base family as printed, and 36,000 gives the big model. Both are counted here, under their own names.
"""

from pathlib import Path

import torch

from common.cost import parameters
from common.data.text import moses
from common.errors import UserError
from papers.transformer import analysis
from papers.transformer.config import MULTI30K, PRESETS, TABLE_3, Config
from papers.transformer.data import read
from papers.transformer.model import Transformer

TOKENS, TOKENS_BIG, TOKENS_SAID = 41_100, 36_000, 37_000
MULTI30K_TOKENS = 9_712  # Revisit-MMT's dictionary, filled up to a multiple of 8
NOTEBOOK_TOKENS = (7_853, 5_893)  # German and English, of bentrevett's notebook
LENGTH = 1_024  # most positions of a translation model; bentrevett: 100
P100_FLOPS = 9.5e12  # the paper's estimate of what a P100 sustains (Section 6.1, footnote 5)


def build(cfg: Config, vocabulary: int, source_vocabulary: int = 0) -> Transformer:
    """The network of a configuration, on the current device, not initialised."""
    language = cfg.experiment == "language"
    return Transformer(
        vocabulary=vocabulary,
        source_vocabulary=source_vocabulary,
        encoder_layers=0 if language else cfg.layers,
        decoder_layers=cfg.layers,
        d=cfg.width,
        heads=cfg.heads,
        d_k=cfg.key_size,
        d_v=cfg.value_size,
        d_ff=cfg.feed_forward,
        length=cfg.context if language else 100 if cfg.dialect == "bentrevett" else LENGTH,
        positions=cfg.positions,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        activation_dropout=cfg.activation_dropout,
        dialect=cfg.dialect,
    )


def peak_lr(cfg: Config) -> float:
    """The largest learning rate of Eq. 3."""
    return cfg.lr * (cfg.width * cfg.warmup_steps) ** -0.5


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read)."""
    counts: dict[str, float] = {}

    def count(name: str, preset: str, vocabulary: int, source: int = 0) -> None:
        n = parameters(build(PRESETS[preset], vocabulary, source))
        counts[f"parameters/{name}"], counts[f"millions/{name}"] = n, n / 1e6

    with torch.device("meta"):
        for name in (*TABLE_3, "big"):
            count(name, f"table3-{name}", TOKENS_BIG if name == "big" else TOKENS)
            count(f"{name}-37k", f"table3-{name}", TOKENS_SAID)
        for name in ("tiny", "small", "base"):
            count(f"multi30k-{name}", f"multi30k-{name}", MULTI30K_TOKENS)
        count("multi30k-deen", "multi30k-deen", NOTEBOOK_TOKENS[1], NOTEBOOK_TOKENS[0])
        for name in ("cpu", "gpu"):
            count(f"shakespeare-{name}", f"shakespeare-{name}", 65)
        counts |= analysis.work()
    counts |= analysis.lengths()
    for width, preset in ((512, "table3-base"), (1_024, "table3-big")):
        counts[f"peak_lr/{width}"] = peak_lr(PRESETS[preset])
    counts["training_flops/base"] = 12 * 3600 * 8 * P100_FLOPS  # hours of Section 5.2, eight GPUs
    counts["training_flops/big"] = 3.5 * 24 * 3600 * 8 * P100_FLOPS
    counts["position_shift_residual"] = analysis.shift_residual()
    counts["dot_product_variance"] = analysis.dot_products(64, torch.Generator().manual_seed(0))

    try:
        pairs, fingerprints = read(MULTI30K, ("en", "de"), data_dir)
    except UserError:  # not within reach: the other counts need no data
        return counts, {}
    counts["multi30k_reference_words"] = sum(len(s.split()) for s in moses(pairs["test"][1], "de"))
    return counts, fingerprints
