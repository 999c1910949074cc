"""The paper's protocols: Tables 1 and 11, Figure 8, Table 15; its language trends scaled to tiny-shakespeare; and the
small tasks of the H3 paper."""

from dataclasses import dataclass, replace
from typing import Literal

INDUCTION, COPYING, RANDOM = "generated/induction-heads", "generated/selective-copying", "generated/random"
H3_INDUCTION, H3_RECALL = "generated/h3-induction", "generated/h3-recall"
SHAKESPEARE = "karpathy/tiny_shakespeare"
LENGTHS = tuple(2**i for i in range(6, 21))  # Table 11

Experiment = Literal["task", "h3-task", "language", "identities", "linear-time", "scan-speed", "throughput", "memory"]


@dataclass(frozen=True)
class Config:
    """Defaults: selective copying with two Mamba layers (Table 1). "code" is state-spaces/mamba at e9594ce, "safari"
    HazyResearch/safari at 02220c6."""

    experiment: Experiment = "task"  # 4.1; H3 paper; 4.2 (scaled); Theorem 1 and 3.3; 3.3; Figure 8 twice; Table 15
    dataset: str = COPYING  # generated/...; karpathy/tiny_shakespeare
    block: Literal["mamba", "plain", "h3", "s4d", "attention", "transformer"] = "mamba"  # Table 1; 11; s4d: H3 paper
    layer: Literal["s6", "s4-complex", "s4-real", "hyena"] = "s6"  # Layer of Table 1; Table 6
    width: int = 64  # D (E.1); Table 11's attention: 128
    layers: int = 2  # blocks (E.1)
    state: int = 16  # N (Section 3.6; code); S4: 64
    expand: int = 2  # E (Section 3.4)
    rank: int = 4  # R, of Delta's projection: ceil(D / 16) in the code; 0: Delta is static (Table 9)
    selective: tuple[str, ...] = ("delta", "b", "c")  # what depends on the input (Table 7)
    init: Literal["-(n+1)", "-1/2", "random"] = "-(n+1)"  # A at the start (Section 3.6, Table 8)
    heads: int = 8  # of attention (E.1)
    positions: Literal["none", "absolute", "rope", "xpos", "learned"] = "none"  # of attention (Table 11; safari)
    layer_norm: bool = False  # LayerNorm in place of RMSNorm
    tied: bool = True  # the head is the embedding (code)
    vocabulary: int = 16  # E.1; 0: the characters of the text
    dropout: float = 0.0  # of embedded tokens and attention's weights, in the H3 paper's tasks (safari)
    length: int = 4_096  # noise and data of selective copying; tokens otherwise (Sections 4.1.1, 4.1.2)
    data_tokens: int = 16  # to be copied (Section 4.1.1)
    train_sequences: int = 0  # read again and again (safari); 0: fresh ones at every step
    test_lengths: tuple[int, ...] = (4_096,)  # lengths that are tested
    test_sequences: int = 1_024  # fixed test sequences of each length; Table 11's numbers are multiples of 1/256
    longest: int = 0  # places of Hyena's position table (Table 11: 2^20)
    lr: float = 1e-4  # peak (E.1: selective copying 1e-4; induction heads 1e-3, others than Mamba 2e-4)
    schedule: Literal["constant", "cosine", "linear", "from-start"] = "constant"  # E.1; to 1e-5 (E.2); safari's two
    warmup_steps: int = 0  # linear (E.2: 10 %)
    weight_decay: float = 0.0  # of matrices (E.1: none; E.2: 0.1)
    beta2: float = 0.999  # Adam's second decay (E.2: 0.95)
    clip_norm: float = 0.0  # largest norm of all gradients together (E.2: 1.0); 0: none
    batch_size: int = 64  # global (E.1; induction heads 8)
    train_steps: int = 400_000  # updates (E.1)
    sizes: tuple[int, ...] = ()  # lengths or batches, where a cost is measured


PRESETS: dict[str, Config] = {}

# ---- Table 1: selective copying
_LTI = Config(state=64)
TABLE_1 = {
    "nogate-s4": replace(_LTI, block="plain", layer="s4-complex"),
    "nogate-s6": Config(block="plain"),
    "h3-s4": replace(_LTI, block="h3", layer="s4-complex"),
    "h3-hyena": Config(block="h3", layer="hyena", longest=4_112),
    "h3-s6": Config(block="h3"),
    "mamba-s4": replace(_LTI, layer="s4-complex"),
    "mamba-hyena": Config(layer="hyena", longest=4_112),
    "mamba-s6": Config(),
}
for _name, _row in TABLE_1.items():
    PRESETS[f"table1-{_name}"] = _row
    # the same task at a length of 64, eight tokens to copy, a tenfold learning rate: two to seven minutes of a core
    PRESETS[f"laptop-copy-{_name}"] = replace(
        _row, length=64, data_tokens=8, test_lengths=(64,), lr=1e-3, batch_size=32, train_steps=3_000,
        longest=72 if _row.layer == "hyena" else 0,
    )  # fmt: skip
PRESETS["copy-100"] = replace(Config(), length=100, test_lengths=(100,))

# ---- Table 11: induction heads; an epoch has 8,192 batches
_HEADS = Config(
    dataset=INDUCTION, length=256, test_lengths=LENGTHS, test_sequences=256, lr=1e-3, batch_size=8,
    train_steps=25 * 8_192, tied=False, rank=16,
)  # fmt: skip
_WIDE = replace(_HEADS, width=128, layer_norm=True, lr=2e-4)
_MHA = replace(_WIDE, block="attention", test_lengths=LENGTHS[:9])
_H3 = replace(_WIDE, block="h3", layer="s4-complex", state=64, train_steps=10 * 8_192)
TABLE_11 = {
    "mamba": _HEADS,
    "mha-abs": replace(_MHA, positions="absolute"),
    "mha-rope": replace(_MHA, positions="rope", train_steps=50 * 8_192),
    "mha-xpos": replace(_MHA, positions="xpos", train_steps=50 * 8_192),
    "h3": _H3,
    "hyena": replace(_H3, layer="hyena", longest=2**20),
}
for _name, _row in TABLE_11.items():
    PRESETS[f"table11-{_name}"] = _row
PRESETS["laptop"] = replace(_HEADS, train_steps=8_192, test_lengths=LENGTHS[:7])
for _name in ("mha-abs", "mha-rope"):
    PRESETS[f"laptop-{_name}"] = replace(TABLE_11[_name], train_steps=8_192, test_lengths=LENGTHS[:5])

# ---- the H3 paper's tasks by safari's configs/experiment/synthetics; an epoch has 157 batches, the last of them 8
_H3_TASK = Config(
    experiment="h3-task", dataset=H3_INDUCTION, block="h3", layer="s4-complex", width=32, state=64, layer_norm=True,
    vocabulary=20, length=30, dropout=0.1, train_sequences=5_000, test_lengths=(30,), test_sequences=500, lr=5e-4,
    schedule="from-start", warmup_steps=40 * 157, weight_decay=0.1, batch_size=32, train_steps=400 * 157,
)  # fmt: skip
_RECALL = replace(
    _H3_TASK, dataset=H3_RECALL, vocabulary=10, length=20, test_lengths=(20,), schedule="linear",
    warmup_steps=20 * 157, train_steps=200 * 157,
)  # fmt: skip
for _name, _row in (("h3task", _H3_TASK), ("h3recall", _RECALL)):
    PRESETS[f"{_name}-h3"], PRESETS[f"{_name}-s4"] = _row, replace(_row, block="s4d")
    PRESETS[f"{_name}-attention"] = replace(_row, block="attention", heads=1, positions="learned")

# ---- Tables 6 to 10 and Section 4.2, scaled to the characters of tiny-shakespeare by E.2's recipe
_TEXT = Config(
    experiment="language", dataset=SHAKESPEARE, width=384, layers=12, rank=24, vocabulary=0, length=256, lr=1e-3,
    schedule="cosine", warmup_steps=100, weight_decay=0.1, beta2=0.95, clip_norm=1.0, train_steps=1_000,
)  # fmt: skip
PRESETS["shakespeare-mamba"] = _TEXT
PRESETS["shakespeare-transformer"] = replace(
    _TEXT, block="transformer", layers=6, heads=6, positions="rope", layer_norm=True
)
_SCALED = replace(_TEXT, width=96, layers=4, rank=6, lr=3e-3, batch_size=16)
SCALED: dict[str, dict[str, object]] = {
    "mamba": {},
    "transformer": {"block": "transformer", "layers": 2, "heads": 4, "positions": "rope", "layer_norm": True},
    **{f"mamba-{layer}": {"layer": layer} for layer in ("s4-complex", "s4-real", "hyena")},
    **{f"h3-{layer}": {"block": "h3", "layer": layer} for layer in ("s6", "s4-complex", "s4-real", "hyena")},
    "none": {"selective": ()},
    "b": {"selective": ("b",)},
    "c": {"selective": ("c",)},
    "delta": {"selective": ("delta",)},
    "init-half": {"init": "-1/2"},
    "init-random": {"init": "random"},
    "rank0": {"selective": ("b", "c")},
    "rank1": {"rank": 1},
    "n1": {"state": 1},
    "delta-n1": {"selective": ("delta",), "state": 1},
}
for _name, _change in SCALED.items():
    _more = {"longest": 256} if "hyena" in _name else {"state": 64} if "s4" in _name else {}
    PRESETS[f"scaled-{_name}"] = replace(_SCALED, **{**_more, **_change})  # type: ignore[arg-type]

# ---- identities and costs
_COST = Config(dataset=RANDOM, train_steps=1)
PRESETS["s33-identities"] = replace(_COST, experiment="identities", batch_size=2, length=50, width=24)
PRESETS["s33-linear"] = replace(
    _COST, experiment="linear-time", vocabulary=64, batch_size=1, sizes=(1_024, 2_048, 4_096, 8_192, 16_384)
)
PRESETS["fig8-scan"] = replace(
    _COST, experiment="scan-speed", batch_size=1, width=1_024, sizes=tuple(2**i for i in range(9, 20))
)
PRESETS["laptop-scan"] = replace(PRESETS["fig8-scan"], sizes=tuple(2**i for i in range(9, 14)))
_MAMBA = replace(_COST, vocabulary=50_280, experiment="throughput", length=2_048, sizes=(1, 2, 4, 8, 16, 32, 64, 128))
_GPT = replace(_MAMBA, block="transformer", positions="rope", layer_norm=True)
PRESETS |= {
    "fig8-mamba-1.4b": replace(_MAMBA, width=2_048, layers=48, rank=128),
    "fig8-transformer-1.3b": replace(_GPT, width=2_048, layers=24, heads=16),
    "fig8-mamba-6.9b": replace(_MAMBA, width=4_096, layers=64, rank=256),
    "fig8-transformer-6.7b": replace(_GPT, width=4_096, layers=32, heads=32),
}
_MEMORY = replace(_MAMBA, experiment="memory", width=768, layers=24, rank=48, sizes=(1, 2, 4, 8, 16, 32))
PRESETS["table15-mamba"] = _MEMORY
PRESETS["table15-transformer"] = replace(
    _MEMORY, block="transformer", layers=12, heads=12, positions="rope", layer_norm=True
)

PRESETS["smoke"] = replace(
    _HEADS, width=16, rank=2, state=4, length=24, test_lengths=(24, 48), test_sequences=12, train_steps=12
)
