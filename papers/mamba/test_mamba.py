"""Identity of Mamba: counts, four ways to scan, the kernel in Triton's interpreter, the reference, promises, tasks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli import launch
from common.errors import UserError
from common.paths import ROOT
from common.random import generator
from common.records import read
from common.threads import on_threads
from papers.mamba import compiled, data, scan
from papers.mamba.audit import audit, build, small_lm
from papers.mamba.config import PRESETS, replace
from papers.mamba.h3 import SmallLM
from papers.mamba.model import S4, S6, Attention, Hyena, Model, long_convolution
from papers.mamba.train import answers, inputs, schedule

Way = Callable[..., tuple[Tensor, Tensor]]


def small(seed: int = 0, **changes: Any) -> Model:
    model = Model(**{"vocabulary": 16, "d": 16, "layers": 2, "n": 4, "rank": 2, **changes})
    model.initialise(generator(seed))
    return model


def given(b: int, l: int, d: int, n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:  # noqa: E741
    made = inputs(b, l, d, n, generator("given", l, d), "cpu", torch.float64)
    made[2] = made[2] * (1 + 0.3 * torch.rand(made[2].shape, generator=generator("A"), dtype=torch.float64))
    return [v.to(dtype).requires_grad_() for v in made]


def errors(way: Way, shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[float]:
    """Of y, the last state and every gradient, against the loop in float64, relative to the largest value."""
    b, _, d, n = shape
    exact, mine = given(*shape), given(*shape, dtype=dtype)
    draw = generator("weight")
    weight = torch.randn(b, shape[1], d, generator=draw, dtype=torch.float64)
    h = torch.randn(b, d, n, generator=draw, dtype=torch.float64)
    found = []
    ways: list[tuple[Way, list[Tensor], torch.dtype]] = [(scan.scan_by_loop, exact, torch.float64), (way, mine, dtype)]
    for f, v, kind in ways:
        y, last = f(*v, h=h.to(kind))
        found.append([y, last.detach(), *torch.autograd.grad((y * weight.to(kind)).sum(), v)])
    return [float((q - p).detach().abs().max() / p.detach().abs().max()) for p, q in zip(*found, strict=True)]


# ---- counts


def test_printed_counts() -> None:
    counts = audit(None)[0]
    table9 = {0: 358.9, 1: 359.1, 2: 359.3, 4: 359.7, 8: 360.5, 16: 362.1, 32: 365.2, 64: 371.5}
    assert {r: round(counts[f"millions/rank{r}"], 1) for r in table9} == table9
    table10 = {1: 367.1, 2: 367.4, 4: 368.0, 8: 369.1, 16: 371.5}
    for kind in ("n", "constant-n"):
        assert {n: round(counts[f"millions/{kind}{n}"], 1) for n in table10} == table10
    sizes = {"130m": 129_135_360, "370m": 371_516_416, "790m": 793_204_224, "1.4b": 1_372_178_432,
             "2.8b": 2_768_345_600}  # fmt: skip
    assert {name: counts[f"parameters/{name}"] for name in sizes} == sizes
    assert counts["thousands/mha-abs"] * 1000 == 136_960
    assert counts["thousands/mamba"] * 1000 == 73_664
    assert round(counts["thousands/hyena"] / 1000) == 69


# ---- the scan: loop, chunks, compiled code, kernel

SHAPES = [(2, 70, 40, 5), (1, 33, 16, 16), (3, 1, 3, 1), (2, 65, 130, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("steps", "lanes"), [(7, 1), (16, 4), (32, 5), (1000, 8)])
def test_chunked_scan_is_the_loop(
    shape: tuple[int, int, int, int], steps: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_chunk", lambda x, n: (min(steps, x.shape[1]), lanes))
    assert max(errors(scan.selective_scan, shape, torch.float64)) < 1e-12  # float64 takes the chunked way


@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_scan_is_the_loop(shape: tuple[int, int, int, int]) -> None:
    assert max(errors(scan.selective_scan, shape, torch.float32)) < 3e-6
    one = given(*shape, dtype=torch.float32)
    alone = scan.selective_scan(*one)[0]
    with on_threads(2):  # threads share the work, not the sums
        assert torch.equal(scan.selective_scan(*one)[0], alone)


def test_a_diverged_run_shows_it() -> None:
    for spoiled in range(2):
        v = [t.detach().clone() for t in given(1, 8, 16, 4, torch.float32)]
        v[spoiled][0, 3, 2] = float("nan")
        y, last = scan.selective_scan(*v)
        assert y[0, 3:, 2].isnan().all()
        assert last[0, 2].isnan().all()
        assert y[0, :3].isfinite().all()


def test_compiled_exponential() -> None:
    x = torch.linspace(-86, 0, 200_001, dtype=torch.float32)
    table = torch.stack([x, torch.ones_like(x)])  # h = exp(x) * 1: one step from a state of ones, without input
    one = torch.ones(1, 1, 1)
    d = -(-len(x) // compiled.LANES) * compiled.LANES
    A = F.pad(table[0], (0, d - len(x)))[:, None]
    zero = torch.zeros(1, 1, d)
    _, last = scan.selective_scan(zero, zero + 1, A, one, one, torch.zeros(d), torch.ones(1, d, 1))
    exact = x.double().exp()
    assert float(((last[0, : len(x), 0].double() - exact) / exact).abs().max()) < 2e-7


KERNEL_PROGRAM = """
import json, sys
sys.path.insert(0, {root!r})
from papers.mamba import test_mamba as t
from papers.mamba.fused import fused_scan
import torch
found = {{}}
for shape, chunk in (((2, 70, 40, 5), 32), ((1, 33, 32, 16), 64), ((2, 17, 3, 1), 16), ((1, 1, 33, 3), 16)):
    way = lambda *v, h: fused_scan(*v, h=h, chunk=chunk)
    found[str(shape)] = t.errors(way, shape, torch.float32)
v = [a.detach() for a in t.given(1, 20, 32, 4, torch.float32)]
h = torch.zeros(1, 32, 4)
half = [a.bfloat16() if i in (0, 1, 3, 4) else a for i, a in enumerate(v)]
y, last = fused_scan(*half, h=h, chunk=16)
assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
exact, y = t.scan.scan_by_loop(*(a.float() for a in half))[0], y.float()
found["bf16"] = [float((y - exact).abs().max() / exact.abs().max())]
print(json.dumps(found))
"""


def interpreted(program: str, **more: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fused_kernel_is_the_loop_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    found = json.loads(interpreted(KERNEL_PROGRAM.format(root=str(ROOT)), TRITON_INTERPRET="1").splitlines()[-1])
    assert max(found.pop("bf16")) < 1e-2
    assert len(found) == 4
    assert max(max(one) for one in found.values()) < 3e-6, found


COMPILE_PROGRAM = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from papers.mamba import fused
plain = {"L", "D", "N", "T", "chunks", "subs", "items"}
kernels = [(fused._ends, {"REVERSE": False}), (fused._ends, {"REVERSE": True}), (fused._carry, {"REVERSE": True}),
           (fused._read_out, {"KEEP": True, "SUB": 16}), (fused._gradients, {"SUB": 16})]
for kernel, extra in kernels:
    constant = {**extra, "CH": 32, "NN": 16}
    kinds = {a: "constexpr" if a in constant else "i32" if a in plain else "*fp32" for a in kernel.arg_names}
    made = compile(ASTSource(fn=kernel, signature=kinds, constexprs=constant), target=GPUTarget("cuda", 90, 32),
                   options={"num_warps": 1})
    ptx = made.asm["ptx"]
    assert "ex2.approx" in ptx
    assert kernel is fused._gradients or "shfl" not in ptx  # a lane holds all states of its channel
print("compiled")
"""


def test_fused_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    more = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    assert interpreted(COMPILE_PROGRAM, **more).endswith("compiled\n")


def test_an_empty_sequence_is_a_mistake() -> None:
    with pytest.raises(UserError, match="length 0"):
        scan.selective_scan(*(v[:, :0] if v.ndim == 3 else v for v in given(1, 2, 3, 4)))


# ---- against the reference


def mapped(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> ours."""
    ours = {}
    for name, value in theirs.items():
        name = name.removeprefix("backbone.").replace("embeddings.", "embedding.").replace("lm_head", "head")
        for part in ("x_proj", "dt_proj", "A_log", "D"):
            name = name.replace(f"mixer.{part}", f"mixer.ssm.{part}")
        ours[name] = value
    return ours


def test_equals_transformers_with_mapped_weights() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=24, hidden_size=16, state_size=4, num_hidden_layers=3, time_step_rank=2, expand=2, use_cache=False
    )
    torch.manual_seed(0)
    theirs = MambaForCausalLM(config)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))
    ours = Model(vocabulary=24, d=16, layers=3, n=4, rank=2)
    ours.load_state_dict(mapped(theirs.state_dict()))
    x, y = torch.randint(24, (2, 40)), torch.randint(24, (2, 40))
    mine, reference = ours(x), theirs(x).logits
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
    for logits in (mine, reference):
        F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    expected = mapped({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    named = dict(ours.named_parameters())
    assert expected.keys() == named.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(named[name].grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_start_is_the_codes() -> None:
    model = small(d=64, n=16, rank=4)
    ssm: Any = model.blocks[0].mixer.ssm
    assert torch.allclose(ssm.A_log.exp()[5], torch.arange(1.0, 17.0))
    step = F.softplus(ssm.dt_proj.bias.detach())
    assert float(step.min()) * 1.001 >= 1e-3
    assert float(step.max()) <= 0.1 * 1.001
    assert 0.3 < float((step < 1e-2).float().mean()) < 0.7  # log-uniform
    assert float(ssm.dt_proj.weight.detach().abs().max()) <= 0.5
    assert model.head.weight is model.embedding.weight
    decaying, plain = model.decay_groups(0.1)
    assert decaying["weight_decay"] == 0.1
    assert any(p is ssm.A_log for p in plain["params"])
    assert any(p is model.embedding.weight for p in decaying["params"])
    assert sum(p.numel() for g in (decaying, plain) for p in g["params"]) == sum(p.numel() for p in model.parameters())


# ---- what the paper promises


def test_theorem_1_needs_zero_order_hold() -> None:
    x, score = torch.randn(2, 2, 30, 5, dtype=torch.float64)
    one, d = x.new_ones(2, 30, 1), 5
    g, h, gated = score.sigmoid(), x.new_zeros(2, d), []
    for t in range(30):
        h = (1 - g[:, t]) * h + g[:, t] * x[:, t]
        gated.append(h)
    args = (x, F.softplus(score), -x.new_ones(d, 1), one, one, x.new_zeros(d))
    exact, _ = scan.scan_by_loop(*args, zero_order_hold=True)
    torch.testing.assert_close(exact, torch.stack(gated, 1), rtol=1e-12, atol=1e-12)
    assert float((scan.scan_by_loop(*args)[0] - torch.stack(gated, 1)).abs().max()) > 0.05  # the code's Euler step


BLOCKS: list[dict[str, Any]] = [
    {}, {"block": "plain"}, {"block": "h3"}, {"selective": ()}, {"selective": ("b",)}, {"selective": ("c",)},
    {"selective": ("delta",)}, {"block": "attention", "heads": 2, "positions": "absolute"},
    {"block": "attention", "heads": 2, "positions": "rope"}, {"block": "transformer", "heads": 2, "positions": "xpos"},
]  # fmt: skip
LTI: list[dict[str, Any]] = [
    {"layer": "s4-complex"}, {"layer": "s4-real"}, {"block": "h3", "layer": "s4-complex"},
    {"layer": "hyena", "longest": 64, "trained": 24}, {"block": "h3", "layer": "hyena", "longest": 64, "trained": 64},
]  # fmt: skip


@pytest.mark.parametrize("changes", BLOCKS, ids=str)
def test_generation_step_by_step_is_the_whole_sequence(changes: dict[str, Any]) -> None:
    model, x = small(**changes), torch.randint(16, (2, 30), generator=generator("x"))
    with torch.no_grad():
        whole = model(x)
        logits, states = model.read(x[:, :7], last=7)
        pieces = [logits]
        for t in range(7, 20):
            logits, states = model.read(x[:, t : t + 1], states)
            pieces.append(logits)
        logits, states = model.read(x[:, 20:], states, last=10)
    torch.testing.assert_close(torch.cat([*pieces, logits], 1), whole, rtol=1e-4, atol=1e-5)
    said = model.generate(x, 5)
    for i in range(5):
        assert torch.equal(model(torch.cat([x, said[:, :i]], 1), last=1)[:, 0].argmax(-1), said[:, i])


@pytest.mark.parametrize("changes", BLOCKS + LTI, ids=str)
def test_no_block_looks_ahead(changes: dict[str, Any]) -> None:
    model, x = small(**changes), torch.randint(16, (1, 40), generator=generator("x"))
    other = x.clone()
    other[:, 25:] = (other[:, 25:] + 1) % 16
    with torch.no_grad():
        a, b = model(x), model(other)
    torch.testing.assert_close(a[:, :25], b[:, :25], rtol=1e-3, atol=1e-5)
    assert float((a[:, 25:] - b[:, 25:]).abs().max()) > 1e-4
    if not model.in_pieces:
        with pytest.raises(UserError, match="carries no state"):
            model.read(x)


def test_the_state_does_not_grow() -> None:
    model = small()

    def size(length: int) -> int:
        with torch.no_grad():
            _, states = model.read(torch.zeros(1, length, dtype=torch.long))
        return sum(t.numel() for pair in states for t in pair)

    assert size(5) == size(500) == 2 * (32 * 3 + 32 * 4)


def test_constant_parameters_are_a_state_space_of_their_own() -> None:
    """Constant Delta, B and C: the wide scan is the time-invariant recurrence, and its impulse response decays."""
    layer = S6(3, 4, 0, ())
    layer.initialise(generator(1))
    layer.double()
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    assert layer.B is not None
    assert layer.C is not None
    assert layer.dt_bias is not None
    delta, A = F.softplus(layer.dt_bias), -layer.A_log.exp()
    h, expected = torch.zeros(2, 3, 4, dtype=torch.float64), []
    for t in range(20):
        h = torch.exp(delta[:, None] * A) * h + delta[:, None] * layer.B * x[:, t, :, None]
        expected.append((h * layer.C).sum(-1) + layer.D * x[:, t])
    torch.testing.assert_close(layer(x)[0], torch.stack(expected, 1))


@pytest.mark.parametrize("complex_", [True, False])
def test_s4_is_its_recurrence(complex_: bool) -> None:
    layer = S4(3, 8, complex_)
    layer.initialise(generator(2))
    layer.double()
    A, C = -layer.A_log.exp(), 1.0 * layer.C
    if complex_:
        A, C = torch.complex(A, layer.A_imag), 2 * torch.view_as_complex(C)  # type: ignore[arg-type]
    step = layer.log_step.exp()[:, None]
    decay, gain = torch.exp(step * A), (torch.exp(step * A) - 1) / A
    x = torch.randn(2, 50, 3, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, A.shape[1], dtype=A.dtype), []
    for t in range(50):
        h = decay * h + gain * x[:, t, :, None]
        expected.append((h * C).sum(-1).real + layer.D * x[:, t])
    torch.testing.assert_close(layer(x)[0], torch.stack(expected, 1), rtol=1e-4, atol=1e-4)  # FFT in float32


def test_long_convolution_and_hyenas_table() -> None:
    x, k = torch.randn(2, 9, 3), torch.randn(3, 9)
    expected = torch.stack([sum(k[:, j] * x[:, t - j] for j in range(t + 1)) for t in range(9)], 1)  # type: ignore[misc]
    torch.testing.assert_close(long_convolution(x, k), expected, rtol=1e-4, atol=1e-5)
    few, all_ = Hyena(4, 32, 8), Hyena(4, 32, 32)  # rows that no gradient reaches may stay a formula
    with torch.no_grad():
        for p, q in zip(few.parameters(), all_.parameters(), strict=True):
            if p.shape == q.shape:
                q.copy_(p.normal_(generator=generator(0)))
        few.positions.copy_(few.table(0, 8))
        all_.positions.copy_(all_.table(0, 32))
    torch.testing.assert_close(few.kernel(32), all_.kernel(32))
    with pytest.raises(UserError, match="longer than the 32 places"):
        few.kernel(33)


def test_rotary_attention_sees_distances_alone() -> None:
    for positions in ("rope", "xpos"):
        attention = Attention(16, 2, positions)
        q, k = torch.randn(2, 1, 2, 1, 8)
        near = attention._turned(q, 12, 1.0) * attention._turned(k, 5, -1.0)
        far = attention._turned(q, 112, 1.0) * attention._turned(k, 105, -1.0)
        torch.testing.assert_close(near.sum(-1), far.sum(-1), rtol=1e-3, atol=1e-4)


# ---- tasks, schedules, costs


def test_tasks_are_what_they_say() -> None:
    tokens, target = data.induction_heads(500, 30, 16, generator(0))
    assert torch.equal(tokens[:, -1], torch.full((500,), 14))
    for row, want in zip(tokens, target, strict=True):
        first, last = (row == 14).nonzero().flatten().tolist()
        assert last == 29
        assert row[first + 1] == want[0] < 14
    tokens, target = data.selective_copying(200, 40, 8, 16, generator(0))
    assert tokens.shape == (200, 48)
    for row, want in zip(tokens, target, strict=True):
        assert torch.equal(row[:40][row[:40] != 0], want)
        assert (row[40:] == 15).all()
    assert {int(v) for v in target.unique()} == set(range(1, 15))
    again = data.selective_copying(200, 40, 8, 16, generator(0))[0]
    assert torch.equal(tokens, again)
    with pytest.raises(UserError, match="do not fit"):
        data.selective_copying(1, 4, 8, 16, generator(0))


@pytest.mark.parametrize("last", [1, 5])
def test_long_sequences_are_read_in_pieces(last: int) -> None:
    model, x = small(), torch.randint(16, (3, 100), generator=generator("x"))
    with torch.no_grad():
        torch.testing.assert_close(answers(model, x, last, 32), model(x, last=last), rtol=1e-4, atol=1e-5)


def test_cosine_ends_where_it_should() -> None:
    cfg = PRESETS["shakespeare-mamba"]
    at = schedule(cfg)
    assert [at(0), at(99), at(cfg.train_steps)] == pytest.approx([0.01, 1.0, 1e-5 / cfg.lr])
    assert schedule(PRESETS["table1-mamba-s6"])(399_999) == 1.0


def test_presets_are_the_tables() -> None:
    for name, preset in PRESETS.items():
        with torch.device("meta"):  # every network can be built
            model: Model | SmallLM
            if preset.experiment == "h3-task":
                model = small_lm(preset)
            else:
                model = build(replace(preset, longest=min(preset.longest, 300)), preset.vocabulary or 65)
        assert len(model.layers) == preset.layers, name
    steps = {name: PRESETS[f"table11-{name}"].train_steps for name in ("mamba", "mha-abs", "mha-rope", "h3")}
    assert steps == {"mamba": 204_800, "mha-abs": 204_800, "mha-rope": 409_600, "h3": 81_920}
    assert PRESETS["table11-mamba"].test_lengths[-1] == 2**20


@pytest.mark.parametrize(
    ("preset", "changes", "metrics"),
    [
        ("s33-identities", [], {"scan_forward", "scan_backward", "gated_rnn"}),
        ("s33-linear", ["--sizes", "64", "128", "--width", "16"], {"time_slope", "memory_slope", "state_growth"}),
        ("laptop-scan", ["--sizes", "32", "64", "--width", "128"],
         {"fused_ms/32", "plain_ms/64", "plain_over_fused", "sdpa_over_fused/64"}),
        ("fig8-transformer-1.3b", ["--sizes", "1", "--width", "32", "--layers", "1", "--heads", "2", "--length", "8"],
         {"tokens_per_second/1"}),
        ("fig8-mamba-1.4b", ["--sizes", "2", "--width", "32", "--layers", "1", "--rank", "2", "--length", "8"],
         {"tokens_per_second/2"}),
        ("scaled-delta", ["--dataset", "synthetic/text", "--train-steps", "3", "--width", "16", "--length", "64"],
         {"val_loss", "parameters"}),
        ("h3recall-attention", ["--train-steps", "3", "--warmup-steps", "1", "--train-sequences", "40"],
         {"accuracy", "parameters"}),
        ("laptop-copy-mamba-hyena", ["--train-steps", "2", "--test-sequences", "8"], {"accuracy", "accuracy/64"}),
    ],
)  # fmt: skip
def test_every_experiment_leaves_its_metrics(
    preset: str, changes: list[str], metrics: set[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("mamba", ["--preset", preset, "--device", "cpu", "--output-dir", str(tmp_path), *changes])
    assert stop.value.code == 0
    (record,) = [read(path) for path in tmp_path.glob("records/*.json")]
    assert metrics <= record.metrics.keys()
    assert record.status == "finished"
    if preset == "s33-identities":
        assert max(value or 0.0 for value in record.metrics.values()) < 1e-10
    if preset == "s33-linear":
        assert record.metrics["state_growth"] == 1.0
        assert record.metrics["memory_slope"] == pytest.approx(1.0, abs=0.2)


def test_a_gpus_memory_is_not_measured_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("mamba", ["--preset", "table15-mamba", "--device", "cpu", "--output-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "is a GPU's" in capsys.readouterr().err


def test_learns_to_copy() -> None:
    """Recall of the one token after a mark, in a short sequence, within seconds."""
    model = small(d=32, n=8, rank=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for step in range(150):
        x, y = data.induction_heads(32, 8, 6, generator("learn", step))
        loss = F.cross_entropy(model(x, last=1)[:, 0], y[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.3 * losses[0]
