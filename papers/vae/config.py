"""Every protocol as data: AEVB's two figures, IWAE's tables, small published protocols, and our own cut-down ones."""

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Config:
    """Defaults: AEVB's MNIST experiment (Section 5). "code" is yburda/iwae at 78a6075."""

    dataset: str = "ylecun/mnist"  # data set id; synthetic/<h>x<w>x1 is drawn by the program
    train_images: int = 50_000  # first images of the training split (AEVB Figure 3: 50,000; code: 59,600 of MNIST)
    binarise: Literal["redrawn", "no"] = "no"  # grey levels as probabilities, redrawn at each use, or as they are
    shuffle: bool = True  # a new order every epoch (code: never)
    decoder: Literal["bernoulli", "gaussian"] = "bernoulli"  # p(x | z) (AEVB Appendix C: Bernoulli, faces Gaussian)
    latents: tuple[int, ...] = (20,)  # Gaussian units of each stochastic layer, from the data upwards
    hidden: tuple[int, ...] = (500,)  # tanh units of the networks below each stochastic layer (AEVB Section 5)
    hidden_layers: int = 1  # tanh layers in each of those networks (AEVB Appendix C: 1; IWAE: 2)
    log_variance: bool = True  # Gaussian heads give log sigma^2 (AEVB Appendix C.2) rather than log sigma (IWAE)
    init: Literal["normal", "glorot", "torch"] = "normal"  # AEVB Section 5; IWAE's code; torch.nn.Linear's default
    init_sd: float = 0.01  # standard deviation of the normal ones (AEVB Section 5: N(0, 0.01))
    output_bias: bool = False  # start the output bias at the logit of the mean training image (code)
    objective: Literal["elbo", "vae", "iwae", "wake-sleep", "mcem"] = "elbo"  # closed KL; mean log w; L_k; rivals
    samples: int = 1  # k: draws of z per image (AEVB's L, Section 5: 1)
    beta: float = 1.0  # weight of the KL term (beta-VAE); 1 is the bound itself
    batch_size: int = 100  # M (AEVB Section 5); global
    train_steps: int = 100_000  # weight updates: 10^7 images in batches of 100 (AEVB Figure 2)
    then_objective: Literal["none", "vae", "iwae"] = "none"  # what a second phase optimises (IWAE Table 2)
    then_samples: int = 1  # k of the second phase
    then_steps: int = 0  # weight updates of the second phase, at a tenth of lr
    optimizer: Literal["adagrad", "adam", "iwae-adam"] = "adagrad"  # AEVB Section 5; the code has an Adam of its own
    lr: float = 0.01  # step size; AEVB: of 0.01, 0.02, 0.1 the best on training data (see README)
    lr_stages: bool = False  # stage i, 3^i epochs long, at lr 10^(-i/7) rounded as in the code (IWAE Section 5)
    beta1: float = 0.9  # Adam's first moment (IWAE Section 5: 0.9; code: 0.99)
    beta2: float = 0.999  # Adam's second moment
    eps: float = 1e-10  # added to the root of the squared gradients (IWAE: 1e-4)
    weight_decay: float = 1.0  # precision of the N(0, I) prior on the parameters, once per epoch (AEVB Section 5)
    em_leapfrog_steps: int = 10  # Monte Carlo EM: leapfrog steps before the weight updates (AEVB Appendix E)
    em_updates: int = 5  # Monte Carlo EM: weight updates with the acquired sample (AEVB Appendix E)
    likelihood_samples: int = 0  # samples of the estimate L_k on the test set (IWAE: 5,000); 0: none
    likelihood_train_images: int = 0  # training images whose L_k is estimated too (code: all)
    activity_images: int = 500  # training images over which a unit's activity is measured (code: 500)
    hmc_images: int = 0  # images whose marginal likelihood is estimated by HMC (AEVB Appendix E: 1,000); 0: none
    hmc_samples: int = 50  # posterior samples of that estimate (AEVB Appendix E)
    hmc_leapfrog_steps: int = 4  # leapfrog steps between them (AEVB Appendix E)
    hmc_burn_in_steps: int = 200  # transitions before the first sample (unsaid)


PRESETS: dict[str, Config] = {}

# ---- AEVB Figure 2: the bound against wake-sleep's, for several sizes of the latent space
# Step size of each curve: the best training bound of seed 0 after 1,000 updates (Section 5); 0.01 where unlisted.
STEP_SIZES = {
    "fig2-mnist-nz3-aevb": 0.02,
    "fig2-mnist-nz5-aevb": 0.02,
    "fig2-mnist-nz10-aevb": 0.02,
    "fig2-frey-nz2-aevb": 0.02,
    "fig3-n1000-aevb": 0.1,
    "fig3-n1000-wakesleep": 0.1,
    "fig3-n1000-mcem": 0.1,
    "fig3-n50000-aevb": 0.1,
    "fig3-n50000-wakesleep": 0.02,
    "fig3-n50000-mcem": 0.1,
}
_RIVALS: dict[str, Any] = {"aevb": "elbo", "wakesleep": "wake-sleep", "mcem": "mcem"}
for _rival in ("aevb", "wakesleep"):
    for _n in (3, 5, 10, 20, 200):
        PRESETS[f"fig2-mnist-nz{_n}-{_rival}"] = Config(latents=(_n,), objective=_RIVALS[_rival])
    for _n in (2, 5, 10, 20):
        PRESETS[f"fig2-frey-nz{_n}-{_rival}"] = Config(
            dataset="local/frey-faces",
            train_images=1600,
            decoder="gaussian",
            latents=(_n,),
            hidden=(200,),
            objective=_RIVALS[_rival],
        )

# ---- AEVB Figure 3: marginal likelihood of a model small enough for HMC, also against Monte Carlo EM
for _n in (1_000, 50_000):
    for _rival, _objective in _RIVALS.items():
        PRESETS[f"fig3-n{_n}-{_rival}"] = Config(
            train_images=_n, latents=(3,), hidden=(100,), objective=_objective, hmc_images=1_000
        )
for _name, _lr in STEP_SIZES.items():
    PRESETS[_name] = replace(PRESETS[_name], lr=_lr)

# ---- IWAE Table 1, by the official code
_IWAE_1 = Config(
    train_images=59_600,
    binarise="redrawn",
    shuffle=False,
    latents=(50,),
    hidden=(200,),
    hidden_layers=2,
    log_variance=False,
    init="glorot",
    output_bias=True,
    objective="vae",
    batch_size=20,
    train_steps=3280 * 2980,
    optimizer="iwae-adam",
    lr=1e-3,
    lr_stages=True,
    beta1=0.99,
    eps=1e-4,
    weight_decay=0.0,
    likelihood_samples=5_000,
    likelihood_train_images=59_600,
)
_LAYERS = {1: _IWAE_1, 2: replace(_IWAE_1, latents=(100, 50), hidden=(200, 100))}
_DATA: dict[str, dict[str, Any]] = {
    "table1-mnist": {},
    "table1-omniglot": {
        "dataset": "yburda/omniglot-28x28",
        "train_images": 23_000,
        "likelihood_train_images": 23_000,
        "train_steps": 3280 * 1150,
    },
    "table3-fixed": {
        "dataset": "larochelle/binarized-mnist",
        "train_images": 50_000,
        "likelihood_train_images": 50_000,
        "train_steps": 3280 * 2500,
        "binarise": "no",
    },
}
_ROWS: list[tuple[Literal["vae", "iwae"], int]] = [(o, k) for o in ("vae", "iwae") for k in (1, 5, 50)]
for _table, _changes in _DATA.items():
    for _layers, _base in _LAYERS.items():
        for _row, _k in _ROWS:
            PRESETS[f"iwae-{_table}-{_layers}layer-{_row}-k{_k}"] = replace(
                _base, objective=_row, samples=_k, **_changes
            )
PRESETS["iwae-table2-vae-then-iwae50"] = replace(
    _IWAE_1, then_objective="iwae", then_samples=50, then_steps=3**7 * 2980
)
PRESETS["iwae-table2-iwae50-then-vae"] = replace(
    _IWAE_1, objective="iwae", samples=50, then_objective="vae", then_samples=1, then_steps=3**7 * 2980
)

# ---- Other people's small-scale protocols, with numbers of their own
_XQDING = {
    "train_images": 60_000,
    "shuffle": True,
    "init": "torch",
    "output_bias": False,
    "batch_size": 1_000,
    "train_steps": 5_000 * 60,
    "optimizer": "adam",
    "lr_stages": False,
    "beta1": 0.9,
    "eps": 1e-8,
    "likelihood_train_images": 0,
}
for _layers, _base in _LAYERS.items():
    for _row, _k in _ROWS:
        _changes = {"objective": _row, "samples": _k, **_XQDING}
        PRESETS[f"xqding-{_layers}layer-{_row}-k{_k}"] = replace(_base, **_changes)

# ---- Ours: the official schedule stopped after six stages (364 epochs) or four (40), and smaller estimates
for _epochs, _evaluation in ((364, 5_000), (40, 500)):
    for _layers, _base in _LAYERS.items():
        for _row, _k in _ROWS:
            PRESETS[f"iwae-{_epochs}-mnist-{_layers}layer-{_row}-k{_k}"] = replace(
                _base,
                objective=_row,
                samples=_k,
                train_steps=_epochs * 2980,
                likelihood_samples=_evaluation,
                likelihood_train_images=1_000,
            )
PRESETS["laptop"] = replace(PRESETS["fig2-mnist-nz20-aevb"], train_steps=5_000, likelihood_samples=100)
PRESETS["smoke"] = replace(
    _LAYERS[2],
    dataset="synthetic/8x8x1",
    train_images=512,
    latents=(4, 2),
    hidden=(16, 8),
    objective="iwae",
    samples=3,
    train_steps=60,
    likelihood_samples=20,
    likelihood_train_images=64,
    activity_images=64,
)
