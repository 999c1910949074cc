"""The language models of Tables 6, 7 and 8, Switch routing, makeMoE, and protocols small enough for two cores."""

from dataclasses import dataclass, replace
from typing import Literal

LM1B, NEWS, C4 = "billion-word-benchmark/lm1b", "local/google-news-100b", "allenai/c4/en"
WIKITEXT, SHAKESPEARE = "Salesforce/wikitext/wikitext-2-v1", "karpathy/tiny_shakespeare"
GAUSSIAN, TIMED = "generated/gaussian-regression", "generated/timing"


@dataclass(frozen=True)
class Config:
    """Defaults: MoE-256 on the 1 Billion Word benchmark (Appendix C.1, Table 7)."""

    experiment: Literal["language", "makemoe", "regression", "timing"] = "language"  # C.1; makeMoE; the layer; time
    dataset: str = LM1B  # data set id (Section 5.1)
    unit: Literal["word", "character"] = "word"  # what a token is
    min_count: int = 3  # rarer words are <unk>: 793,471 words stay (Section 5.1)
    width: int = 512  # d of embedding and MoE (C.1)
    heads: int = 8  # of makeMoE's Transformer (makeMoE_from_Scratch.ipynb at 0d68228)
    layers: int = 8  # its blocks (same)
    lstm_units: int = 512  # projected to d where they differ (C.1, C.2)
    middle: Literal["moe", "lstm", "none"] = "moe"  # between the LSTMs: MoE; two LSTMs; nothing, one LSTM (C.1)
    gating: Literal["noisy-top-k", "batchwise", "switch"] = "noisy-top-k"  # Section 2.1; Appendix F; Switch Section 2
    experts: int = 256  # n (Table 7); 1: no gate
    groups: int = 0  # first-level branching of a hierarchical MoE (Appendix B; 16 in C.1); 0: flat
    active: int = 4  # k experts for a token; of a hierarchical MoE at each level (C.1: 4, or 2)
    expert_units: tuple[int, ...] = (1024,)  # hidden layers of an expert (C.1)
    squashed: bool = True  # sigmoid on the MoE's output (C.1); Switch layers have none
    w_importance: float = 0.1  # weight of CV(Importance)^2 (C.1; Appendix A)
    w_load: float = 0.1  # weight of CV(Load)^2 (C.1; Appendix A)
    capacity_factor: float = 1.25  # with gating switch (Switch Section 2.2)
    aux_weight: float = 0.01  # alpha of Switch's Eq. 4, with gating switch
    exploration: Literal["argmax", "sample", "dropout", "jitter"] = "jitter"  # Switch Table 11, with gating switch
    init_scale: float = 0.0  # s of a truncated normal for router and experts (Switch Section 2.4: 0.1); 0: uniform
    dropout: float = 0.1  # DropProb (Table 7)
    lr: float = 1e-3  # Adam's, at the end of the warm-up (unsaid)
    warmup_steps: int = 1000  # linear; then as the inverse square root of the step (C.1)
    batch_size: int = 15_000  # windows in a batch, global; rows of the Gaussian inputs
    length: int = 20  # words in a window; with the batch size 300,000 words (C.1)
    steps: int = 27_000  # updates: 10 epochs (C.1)
    measured_batch_size: int = 15_000  # of the batches Table 6's columns are taken over: 4,688 tokens an expert
    softmax_samples: int = 8192  # words the softmax is trained against (C.1: importance sampling); 0: all
    timed_experts: tuple[int, ...] = ()  # numbers of experts whose time is taken, with experiment = timing


_H = Config(active=2, groups=16)

TABLE_7: dict[str, Config] = {
    "4xlstm-512": Config(middle="lstm"),
    "moe-1-wide": Config(experts=1, active=1, expert_units=(4096,)),
    "moe-1-deep": Config(experts=1, active=1, expert_units=(1024,) * 4),
    "lstm-2048-512": Config(middle="none", lstm_units=2048),
    "moe-4": Config(experts=4),
    "moe-32": Config(experts=32),
    "moe-256": Config(),
    "moe-256-h": replace(_H, experts=256),
    "moe-1024-h": replace(_H, experts=1024, dropout=0.2),
    "moe-4096-h": replace(_H, experts=4096, dropout=0.2),
    "moe-34m": replace(_H, experts=1024, expert_units=(2048,), width=1024, lstm_units=1024, dropout=0.3),
    "moe-143m": replace(_H, experts=256, expert_units=(8192,), width=1024, lstm_units=4096, dropout=0.4),
}

TABLE_8: dict[str, Config] = {  # 2.5 million words a batch, once through 100 billion (Appendix D); never released
    name: replace(config, dataset=NEWS, batch_size=125_000, steps=40_000)
    for name, config in {
        "4xlstm-512": Config(middle="lstm"),
        "moe-32": Config(experts=32),
        **{
            f"moe-{n}-h": Config(experts=n, groups=groups, active=2)
            for n, groups in ((256, 32), (1024, 32), (4096, 64), (16384, 128), (65536, 256), (131072, 256))
        },
    }.items()
}

TABLE_6 = {  # w_importance, w_load
    "none": (0.0, 0.0), "imp.2": (0.2, 0.0), "load.2": (0.0, 0.2), "both.1": (0.1, 0.1), "both.01": (0.01, 0.01),
    "both1": (1.0, 1.0),
}  # fmt: skip

# Switch routing in place of the noisy gate: plain residual, initial scale 0.1 (Switch Sections 2.1 to 2.4)
SWITCH: dict[str, object] = {
    "gating": "switch", "active": 1, "squashed": False, "w_importance": 0.0, "w_load": 0.0, "init_scale": 0.1,
}  # fmt: skip

# ours: words of WikiText-2
_WIKI = Config(
    dataset=WIKITEXT, min_count=1, width=256, lstm_units=256, expert_units=(512,), experts=64, dropout=0.5,
    warmup_steps=200, batch_size=32, length=70, steps=9_300, measured_batch_size=1_071, softmax_samples=0,
)  # fmt: skip

# characters of tiny-shakespeare, 2,048 a batch; the use of 64 experts is measured over 75,000, the paper's 4,688 each
_LAPTOP = Config(
    dataset=SHAKESPEARE, unit="character", min_count=1, width=64, lstm_units=64, expert_units=(128,), experts=64,
    lr=3e-3, warmup_steps=100, batch_size=32, length=64, steps=1_000, measured_batch_size=1_172, softmax_samples=0,
)  # fmt: skip

# the MoE alone learns a random net on Gaussian inputs, 1,024 a batch
_GAUSS = replace(
    _LAPTOP, experiment="regression", dataset=GAUSSIAN, width=32, expert_units=(32,), squashed=False, dropout=0.0,
    batch_size=1024, length=1, measured_batch_size=75_000,
)  # fmt: skip


def _presets() -> dict[str, Config]:
    presets = {f"table7-{name}": config for name, config in TABLE_7.items()}
    for name, (w_importance, w_load) in TABLE_6.items():
        for start, base in (("table6", Config()), ("laptop", _LAPTOP), ("gauss", _GAUSS)):
            presets[f"{start}-{name}"] = replace(base, w_importance=w_importance, w_load=w_load)
    presets["laptop"] = presets["laptop-both.1"]
    for start, base in (("wikitext2", _WIKI), ("laptop", _LAPTOP)):
        presets |= {f"{start}-moe-{n}": replace(base, experts=n) for n in (4, 16, 64)}
        presets[f"{start}-4xlstm"] = replace(base, middle="lstm")
        switch = replace(base, **SWITCH, experts=8, expert_units=(4 * base.expert_units[0],))  # type: ignore[arg-type]
        presets[f"{start}-switch-8"] = switch
        presets[f"{start}-switch-dense"] = replace(switch, experts=1)
    switch = presets["laptop-switch-8"]
    presets |= {f"laptop-switch-8-cf{f}": replace(switch, capacity_factor=f) for f in (1.0, 2.0)}
    presets["laptop-switch-8-init1"] = replace(switch, init_scale=1.0)
    for name in ("argmax", "sample", "dropout"):
        presets[f"laptop-switch-8-{name}"] = replace(switch, exploration=name)  # type: ignore[arg-type]
    presets["laptop-hierarchical"] = replace(_LAPTOP, groups=8, active=2)
    presets["laptop-batchwise"] = replace(_LAPTOP, gating="batchwise", w_importance=0.01, w_load=0.01)  # Appendix E, F
    presets["makemoe"] = Config(  # makeMoE_from_Scratch.ipynb; its last loss is printed before the last update
        experiment="makemoe", dataset=SHAKESPEARE, unit="character", min_count=1, width=128, experts=8, active=2,
        expert_units=(512,), squashed=False, w_importance=0.0, w_load=0.0, warmup_steps=0, batch_size=16, length=32,
        steps=4_999, measured_batch_size=6_400, softmax_samples=0,
    )  # fmt: skip
    presets["timing"] = replace(
        _LAPTOP, experiment="timing", dataset=TIMED, width=128, expert_units=(256,), batch_size=8192, length=1, steps=5,
        timed_experts=(4, 16, 64, 256),
    )  # fmt: skip
    presets["smoke"] = replace(
        _LAPTOP, dataset="synthetic/text", width=16, lstm_units=16, expert_units=(16,), experts=16, groups=4, active=2,
        warmup_steps=4, batch_size=8, length=16, steps=12, measured_batch_size=32,
    )  # fmt: skip
    return presets


PRESETS: dict[str, Config] = _presets()
