"""Counts at the papers' own scale: parameters of every network (printed in neither paper; identity tests of ours)."""

from pathlib import Path

from papers.vae.config import PRESETS, Config
from papers.vae.model import VAE

PIXELS = {"ylecun/mnist": 784, "local/frey-faces": 560}


def parameters(cfg: Config) -> int:
    """Number of parameters of one seed's model."""
    hidden = [[n] * cfg.hidden_layers for n in cfg.hidden]
    model = VAE([0], PIXELS[cfg.dataset], hidden, cfg.latents, cfg.decoder, cfg.log_variance, device="meta")
    return model.theta.numel()


def audit(data_dir: Path | None) -> tuple[dict[str, float], dict[str, str]]:
    """(metric name -> value, data sets read: none)."""
    counts = {f"parameters/aevb-mnist-nz{n}": f"fig2-mnist-nz{n}-aevb" for n in (3, 5, 10, 20, 200)}
    counts |= {f"parameters/aevb-frey-nz{n}": f"fig2-frey-nz{n}-aevb" for n in (2, 5, 10, 20)}
    counts |= {f"parameters/iwae-{n}layer": f"iwae-table1-mnist-{n}layer-vae-k1" for n in (1, 2)}
    return {name: float(parameters(PRESETS[preset])) for name, preset in counts.items()}, {}
