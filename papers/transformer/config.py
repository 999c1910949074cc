"""The paper's protocols, row by row of Tables 2 and 3, and other people's small ones on Multi30k and Shakespeare."""

from dataclasses import dataclass, replace
from typing import Any, Literal

MULTI30K, SHAKESPEARE = "bentrevett/multi30k", "karpathy/tiny_shakespeare"


@dataclass(frozen=True)
class Config:
    """Defaults: the base model on WMT 2014 English-German (Table 3). "code" is tensorflow/tensor2tensor at bafdc1b."""

    experiment: Literal["translation", "language", "section3"] = "translation"  # section3: unit claims and Table 1
    dataset: str = "wmt/wmt14/de-en"  # data set id, a Hub configuration after the second slash (Section 5.1)
    source: str = "en"  # language to translate from
    target: str = "de"  # language to translate into
    units: Literal["bpe", "words", "characters"] = "bpe"  # tokens (Section 5.1)
    merges: int = 37_000  # of the byte-pair encoding (Section 5.1: about 37,000 tokens; en-fr: 32,000 word pieces)
    lowercase: bool = False  # read and score lower-case text
    split_compounds: bool = True  # score the parts of hyphenated words (code: get_ende_bleu.sh)
    dialect: Literal["paper", "fairseq", "nanogpt", "bentrevett"] = "paper"  # whose details of architecture (README)
    layers: int = 6  # N, of the encoder and of the decoder (Table 3); language: of the decoder
    width: int = 512  # d_model (Table 3)
    heads: int = 8  # h (Table 3)
    key_size: int = 64  # d_k (Table 3)
    value_size: int = 64  # d_v (Table 3)
    feed_forward: int = 2_048  # d_ff (Table 3)
    positions: Literal["sinusoid", "learned"] = "sinusoid"  # Section 3.5; Table 3, row E
    dropout: float = 0.1  # P_drop: sublayer outputs, sums of embeddings and positions (Section 5.4, Table 3)
    attention_dropout: float = 0.0  # on attention weights (code: 0)
    activation_dropout: float = 0.0  # on the feed-forward layer's hidden units (code: 0)
    label_smoothing: float = 0.1  # epsilon_ls (Section 5.4, Table 3)
    schedule: Literal["noam", "inverse-sqrt", "cosine", "constant"] = "noam"  # Eq. 3; fairseq; nanoGPT
    lr: float = 1.0  # factor of Eq. 3; of other schedules the peak
    warmup_steps: int = 4_000  # Section 5.3
    beta2: float = 0.98  # Adam (Section 5.3); beta1 is 0.9
    adam_epsilon: float = 1e-9  # Section 5.3
    weight_decay: float = 0.0  # of matrices, beside the gradient (not in the paper)
    clip_norm: float = 0.0  # largest norm of all gradients together (not in the paper); 0: none
    batch_tokens: int = 25_000  # of the longer side, padding counted (Section 5.1: about 25,000 of each)
    batches: int = 1  # batches of like length to an update (Revisit-MMT: one from each of two GPUs)
    train_steps: int = 100_000  # updates (Section 5.2; big: 300,000)
    epochs: int = 0  # in place of train_steps
    patience_epochs: int = 0  # stop after so many without a better validation loss (Revisit-MMT: 10); 0: never
    averaged: int = 1  # last snapshots averaged (Section 6.1: 5, big 20; Table 3: none); 0: the best by validation loss
    snapshot_steps: int = 0  # updates between snapshots; 0: each epoch
    beams: int = 4  # Section 6.1
    length_penalty: float = 0.6  # alpha (Section 6.1)
    search: Literal["paper", "fairseq", "bentrevett"] = "paper"  # scores and end of the beam search (search.py)
    context: int = 256  # characters of a window (language)
    batch_size: int = 64  # windows of an update (language), global
    evaluate_steps: int = 250  # updates between estimates of the loss (language)
    evaluate_batches: int = 200  # batches of an estimate (language)
    bfloat16: bool = False  # matrix products of the forward pass in bfloat16 (nanoGPT on a GPU)


PRESETS: dict[str, Config] = {}


def _add(name: str, base: Config, **changes: Any) -> Config:
    PRESETS[name] = replace(base, **changes)
    return PRESETS[name]


# ---- Table 2: snapshots ten minutes apart, at 0.4 and 1.0 seconds an update (Sections 5.2 and 6.1)
_BASE = Config()
_BIG = replace(_BASE, width=1_024, heads=16, feed_forward=4_096, dropout=0.3, train_steps=300_000)
_FRENCH: dict[str, Any] = {"dataset": "wmt/wmt14/fr-en", "target": "fr", "merges": 32_000, "split_compounds": False}
_add("wmt-base-ende", _BASE, averaged=5, snapshot_steps=1_500)
_add("wmt-big-ende", _BIG, averaged=20, snapshot_steps=600)
_add("wmt-base-enfr", PRESETS["wmt-base-ende"], **_FRENCH)
_add("wmt-big-enfr", PRESETS["wmt-big-ende"], dropout=0.1, **_FRENCH)

# ---- Table 3, on newstest2013, without averaging
TABLE_3: dict[str, dict[str, Any]] = {
    "base": {},
    **{f"h{h}": {"heads": h, "key_size": 512 // h, "value_size": 512 // h} for h in (1, 4, 16, 32)},
    **{f"dk{d_k}": {"key_size": d_k} for d_k in (16, 32)},
    **{f"N{n}": {"layers": n} for n in (2, 4, 8)},
    "d256": {"width": 256, "key_size": 32, "value_size": 32},
    "d1024": {"width": 1_024, "key_size": 128, "value_size": 128},
    **{f"ff{ff}": {"feed_forward": ff} for ff in (1_024, 4_096)},
    "drop0": {"dropout": 0.0},
    "drop0.2": {"dropout": 0.2},
    "ls0": {"label_smoothing": 0.0},
    "ls0.2": {"label_smoothing": 0.2},
    "learned": {"positions": "learned"},
}
for _name, _change in TABLE_3.items():
    _add(f"table3-{_name}", _BASE, **_change)
_add("table3-big", _BIG)

# ---- Multi30k: Transformer-Tiny of LividWo/Revisit-MMT at dc368d0 (README-baseline.md, its fairseq's defaults)
_TINY = Config(
    dataset=MULTI30K,
    merges=10_000,
    lowercase=True,
    split_compounds=False,
    dialect="fairseq",
    layers=4,
    width=128,
    heads=4,
    key_size=32,
    value_size=32,
    feed_forward=256,
    dropout=0.3,
    schedule="inverse-sqrt",
    lr=0.005,
    warmup_steps=2_000,
    adam_epsilon=1e-8,
    clip_norm=25.0,
    batch_tokens=4_096,
    batches=2,
    train_steps=8_000,
    patience_epochs=10,
    averaged=10,
    beams=5,
    length_penalty=1.0,
    search="fairseq",
)
_CHANGES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"layers": 6, "width": 512, "key_size": 128, "value_size": 128, "feed_forward": 1_024},
    "base": {"layers": 6, "width": 512, "heads": 8, "key_size": 64, "value_size": 64, "feed_forward": 2_048},
    # The paper's trends, by one change each
    "drop0": {"dropout": 0.0},
    "drop0.1": {"dropout": 0.1},
    "ls0": {"label_smoothing": 0.0},
    "h1": {"heads": 1, "key_size": 128, "value_size": 128},
    "h32": {"heads": 32, "key_size": 4, "value_size": 4},
    "dk8": {"key_size": 8},
    "N2": {"layers": 2},
    "d64": {"width": 64, "key_size": 16, "value_size": 16},
    "learned": {"positions": "learned"},
}
for _name, _change in _CHANGES.items():
    _add(f"multi30k-{_name}", _TINY, **_change)

# bentrevett/pytorch-seq2seq at b3cd54c, legacy notebook 6: batches of 128 sentences have about 1,900 tokens
_add(
    "multi30k-deen",
    _TINY,
    source="de",
    target="en",
    units="words",
    dialect="bentrevett",
    layers=3,
    width=256,
    heads=8,
    feed_forward=512,
    positions="learned",
    dropout=0.1,
    attention_dropout=0.1,
    activation_dropout=0.1,
    label_smoothing=0.0,
    schedule="constant",
    lr=5e-4,
    warmup_steps=0,
    beta2=0.999,
    clip_norm=1.0,
    batch_tokens=1_900,
    batches=1,
    epochs=10,
    patience_epochs=0,
    averaged=0,
    beams=1,
    search="bentrevett",
)

# ---- Characters of Shakespeare: karpathy/nanoGPT at 3adf61e, config/train_shakespeare_char.py and its README
_add(
    "shakespeare-gpu",
    _BASE,
    experiment="language",
    dataset=SHAKESPEARE,
    units="characters",
    split_compounds=False,
    dialect="nanogpt",
    width=384,
    heads=6,
    feed_forward=1_536,
    positions="learned",
    dropout=0.2,
    attention_dropout=0.2,
    label_smoothing=0.0,
    schedule="cosine",
    lr=1e-3,
    warmup_steps=100,
    beta2=0.99,
    adam_epsilon=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
    train_steps=5_000,
    bfloat16=True,
)
_add(
    "shakespeare-cpu",
    PRESETS["shakespeare-gpu"],
    layers=4,
    width=128,
    heads=4,
    key_size=32,
    value_size=32,
    feed_forward=512,
    dropout=0.0,
    attention_dropout=0.0,
    train_steps=2_000,
    context=64,
    batch_size=12,
    evaluate_batches=20,
    bfloat16=False,
)

_add("section3", _BASE, experiment="section3", dataset="generated/vectors", train_steps=1)
_add("laptop", _TINY, dropout=0.1, lr=0.002, warmup_steps=100, train_steps=300, batches=1, averaged=1)
_add(
    "smoke",
    _TINY,
    dataset="synthetic/pairs",
    merges=200,
    layers=1,
    width=32,
    heads=2,
    key_size=16,
    value_size=16,
    feed_forward=64,
    dropout=0.0,
    lr=0.01,
    warmup_steps=20,
    batch_tokens=512,
    train_steps=60,
    averaged=2,
    snapshot_steps=10,
    beams=2,
)
