"""The mathematics against dense matrices and scipy; kernel = recurrence; gradients; the generators; the recipe."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch

from common.cli import launch
from common.errors import UserError
from common.records import read
from papers.s4 import data, timing
from papers.s4.audit import audit, build, identities, unrolled
from papers.s4.config import PRESETS
from papers.s4.convolution import convolve, convolve_both_ways, fft_length
from papers.s4.kernel import (
    DenseKernel,
    DiagonalKernel,
    S4Kernel,
    cauchy,
    legs,
    legs_eigenvectors,
    legs_start,
    nplr,
    vandermonde,
)
from papers.s4.model import Attention, Layer, S4Net, Transformer, optimiser_groups
from papers.s4.train import schedule

SMOKE = PRESETS["smoke"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(kind: str, double: bool = True, **more: Any) -> Any:
    torch.manual_seed(0)
    kernel: Any = {
        "s4": lambda: S4Kernel(4, 16, more.pop("length", 60), **more),
        "s4d": lambda: DiagonalKernel(4, 16, **more),
        "dense": lambda: DenseKernel(4, 16, **more),
    }[kind]()
    kernel.initialise(generator())
    return kernel.double() if double else kernel


KERNELS: list[tuple[str, dict[str, Any]]] = [
    ("s4", {"copies": 1}),
    ("s4", {"copies": 2, "channels": 2, "init": "random", "untied": True, "length": 61}),
    ("s4", {"softplus": True, "method": "cauchy"}),
    ("s4d", {"init": "lin"}),
    ("s4d", {"init": "inv", "channels": 2, "copies": 2}),
    ("s4d", {"init": "legs", "copies": 1}),
    ("s4d", {"init": "real"}),
    ("s4d", {"init": "lin", "learn_b": False}),
    ("dense", {}),
    ("dense", {"init": "gaussian", "channels": 2, "copies": 2}),
]


# ---- Section 3


def test_legs_is_normal_plus_rank_one() -> None:
    found = identities()
    assert found["nplr_residual"] < 1e-10
    assert found["skew_residual"] < 1e-10
    lam, p, v = nplr(64)
    b = legs(64)[1]
    assert torch.allclose(v.conj().T @ b.to(v), math.sqrt(2) * p, atol=1e-10)
    assert (v.conj().T @ v - torch.eye(32)).abs().max() < 1e-12
    assert lam.imag.min() > 0
    assert torch.equal(lam.real, torch.full_like(lam.real, -0.5))


def test_the_codes_clipped_b_is_that_of_lapacks_basis() -> None:
    a, b = legs(64)
    root = b / math.sqrt(2)
    _, v = torch.linalg.eigh((a + torch.outer(root, root)) * -1j)
    v = v[:, 32:]
    expected = (v.conj().T @ root.to(v)), (v.conj().T @ b.to(v))
    _, p, clip = legs_start(64, clip=True)
    sign = torch.sign((p / expected[0]).real)  # an eigenvector's sign is nobody's
    torch.testing.assert_close(p, sign * expected[0], rtol=1e-8, atol=1e-8)
    want = sign * torch.complex(expected[1].real, expected[1].imag.clamp(-2, 2))
    torch.testing.assert_close(clip, want, rtol=1e-8, atol=1e-8)
    assert float(expected[1].abs().max()) > 40
    assert float(clip.abs().max()) < 2.1
    kernel = S4Kernel(2, 64, 50, init="legs-clipped")
    kernel.initialise(generator(0))
    assert kernel.b is not None
    torch.testing.assert_close(torch.view_as_complex(kernel.b.detach())[0], clip.to(torch.complex64))


def test_legs_has_the_entries_of_equation_2() -> None:
    a, b = legs(5)
    for n in range(5):
        assert b[n] == math.sqrt(2 * n + 1)
        for k in range(5):
            expected = -math.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1) if n == k else 0
            assert a[n, k] == pytest.approx(expected)


def test_eigenvectors_blow_up_as_lemma_3_2_says() -> None:
    n = 12
    v = legs_eigenvectors(n)
    assert v[5, 2] == pytest.approx(math.comb(7, 3))
    scale = torch.sqrt(2 * torch.arange(n, dtype=torch.float64) + 1)
    sign = (-1.0) ** torch.arange(n, dtype=torch.float64)
    a = sign[:, None] * (legs(n)[0] / scale[:, None] * scale) * sign  # Eq. of App. C.1: without normalisation
    diagonal = torch.linalg.solve(v, a @ v)
    off = diagonal - torch.diag(diagonal.diagonal())
    assert off.abs().max() < 1e-5 * v.abs().max()
    assert torch.allclose(diagonal.diagonal(), -torch.arange(1, n + 1, dtype=torch.float64), atol=1e-5)
    assert identities()["blowup_bits_per_state"] == pytest.approx(4 / 3, abs=0.005)
    assert math.log2(float(legs_eigenvectors(48).max())) > 4 * 48 / 3 - 6


def test_audit_counts() -> None:
    found = audit(None)[0]
    assert found["numbers_per_state"] == 5
    assert found["parameters/example-s4d"] == 201_482
    assert round(found["millions/sec4.3-scifar"], 1) == 7.9
    assert round(found["thousands/lra-image-small-s4"]) == 300
    assert round(found["thousands/lra-image-small-s4d"]) == round(found["thousands/lra-image-small-s4d-real"]) == 267
    assert (round(found["millions/lra-image-large-s4"], 2), round(found["millions/lra-image-large-s4d"], 2)) == (
        4.15,
        3.96,
    )
    assert found["small_nets_within_100k"] == 1
    assert found["layer_parameter_slope"] == pytest.approx(2, abs=0.05)


# ---- kernels


@pytest.mark.parametrize(("kind", "more"), KERNELS)
def test_kernel_is_the_recurrence_unrolled(kind: str, more: dict[str, Any]) -> None:
    kernel = made(kind, **dict(more))
    with torch.no_grad():
        assert (kernel(60) - unrolled(kernel, 60)).abs().max() < 1e-10
        assert torch.allclose(kernel(17), kernel(60)[..., :17], atol=1e-13)
        single = made(kind, double=False, **dict(more))
        assert (single(60) - unrolled(single, 60)).abs().max() < 1e-5


def test_s4_kernel_is_powers_of_the_dense_hippo_matrix() -> None:
    """scipy discretises LegS itself; C is turned back from the eigenbasis."""
    kernel = S4Kernel(2, 16, 50, copies=1).double()
    kernel.initialise(generator())
    a, b = legs(16)
    v = nplr(16)[2]
    with torch.no_grad():
        *_, c = kernel.recurrence()
        found = kernel(50)[0]
    for h in range(2):
        true_c = 2 * (c[0, h] @ v.conj().T).real.numpy()
        dt = float(kernel.dt()[h, 0].detach())
        system = scipy.signal.cont2discrete(
            (a.numpy(), b.numpy()[:, None], true_c[None], np.zeros((1, 1))), dt, "bilinear"
        )
        x, expected = system[1][:, 0], []
        # scipy puts half a step of the input into its bilinear C and D: here C and B_bar are the paper's
        half = np.linalg.solve(np.eye(16) - dt / 2 * a.numpy(), dt * b.numpy())
        x = half
        for _ in range(50):
            expected.append(true_c @ x)
            x = system[0] @ x
        assert np.abs(np.array(expected) - found[h].numpy()).max() < 1e-6  # B and P were rounded to float32


def test_s4d_is_zero_order_hold_by_scipy() -> None:
    kernel = made("s4d", init="lin")
    with torch.no_grad():
        dt, lam, b, c, *_ = (x.detach() for x in kernel.numbers())
        found = kernel(40)[0]
    for h in range(4):
        a = np.zeros((16, 16))
        for i, pole in enumerate(lam[h].numpy()):
            a[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[pole.real, -pole.imag], [pole.imag, pole.real]]
        into = torch.view_as_real(b[h]).flatten().numpy()[:, None]
        out = torch.view_as_real(2 * c[0, h].conj().resolve_conj()).flatten().numpy()[None]
        a_bar, b_bar, *_ = scipy.signal.cont2discrete((a, into, out, np.zeros((1, 1))), float(dt[h, 0]), "zoh")
        expected = [float((out @ np.linalg.matrix_power(a_bar, k) @ b_bar).item()) for k in range(40)]
        assert np.abs(expected - found[h].numpy()).max() < 1e-12


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_vandermonde_product_is_the_sum(length: int) -> None:
    torch.manual_seed(0)
    v = torch.randn(3, 2, 5, dtype=torch.complex128)
    log = torch.complex(-torch.rand(2, 5, dtype=torch.float64), 9 * torch.randn(2, 5, dtype=torch.float64))
    expected = 2 * torch.einsum("rhm,hml->rhl", v, torch.exp(log[..., None] * torch.arange(length))).real
    assert (vandermonde(v, log, length) - expected).abs().max() < 1e-11
    single = vandermonde(v.to(torch.complex64), log, length)
    assert single.dtype == torch.float32
    assert (single - expected).abs().max() < 2e-5


def test_cauchy_is_the_resolvent_and_finite_at_minus_one() -> None:
    torch.manual_seed(0)
    v = torch.randn(1, 2, 4, dtype=torch.complex128)
    lam = torch.complex(-torch.rand(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64))
    dt, z = (
        torch.tensor([[0.1], [0.3]], dtype=torch.float64),
        torch.polar(torch.ones(5).double(), torch.arange(5).double()),
    )
    both, poles = torch.cat([v, v.conj()], -1), torch.cat([lam, lam.conj()], -1)
    g = 2 / dt * (1 - z) / (1 + z)
    expected = (both[..., None] / (g[:, None] - poles[..., None])).sum(-2) * 2 / (1 + z)
    assert torch.allclose(cauchy(v, lam, dt, z), expected, atol=1e-12)
    assert torch.isfinite(torch.view_as_real(cauchy(v, lam, dt, -torch.ones(1, dtype=torch.complex128)))).all()


@pytest.mark.parametrize(("kind", "more"), [KERNELS[i] for i in (0, 1, 2, 4, 6, 8)])
def test_kernel_gradients(kind: str, more: dict[str, Any]) -> None:
    kernel = made(kind, **dict(more))
    weights = torch.randn(kernel(12).shape, dtype=torch.float64)
    (kernel(12) * weights).sum().backward()
    for parameter in kernel.parameters():
        direction = torch.randn_like(parameter)
        assert parameter.grad is not None
        slope, eps = float((parameter.grad * direction).sum()), 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * eps * direction
                values.append(float((kernel(12) * weights).sum()))
                parameter -= sign * eps * direction
        assert (values[0] - values[1]) / (2 * eps) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_float32_kernel_stays_close_at_length_1024() -> None:
    kernel = S4Kernel(32, 64, 1024, 2, copies=1)
    kernel.initialise(generator())
    with torch.no_grad():
        single = kernel(1024)
        assert (single - kernel.double()(1024)).abs().max() < 3e-5


def test_kernel_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="longer than the kernel"):
        made("s4")(61)
    with pytest.raises(UserError, match="do not divide 4 channels"):
        S4Kernel(4, 16, 10, copies=3)
    with pytest.raises(UserError, match="even size"):
        DiagonalKernel(4, 7)
    with pytest.raises(UserError, match="does not start as gaussian"):
        made("s4d", init="gaussian")
    with pytest.raises(UserError, match="complex modes"):
        made("s4", init="real")


# ---- convolution, layer and net


@pytest.mark.parametrize("length", [1, 5, 32])
def test_convolution_is_numpys_and_its_gradient_autograds(length: int) -> None:
    torch.manual_seed(0)
    u, k, r = (torch.randn(3, 2, length, dtype=torch.float64, requires_grad=True) for _ in range(3))
    k0, k1 = k[0], r[0]
    y, z = convolve(u, k0), convolve_both_ways(u, k0, k1)
    for b in range(3):
        for h in range(2):
            x = u[b, h].detach().numpy()
            ahead = np.convolve(x, k0[h].detach().numpy())[:length]
            assert np.abs(y[b, h].detach().numpy() - ahead).max() < 1e-12
            back = np.convolve(x[::-1], np.r_[0, k1[h].detach().numpy()])[:length][::-1]
            assert np.abs(z[b, h].detach().numpy() - ahead - back).max() < 1e-12
    assert torch.autograd.gradcheck(convolve, (u, k0))
    assert torch.autograd.gradcheck(convolve_both_ways, (u, k0, k1))


def test_the_batch_may_be_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    u, k = torch.randn(7, 3, 20), torch.randn(3, 20)
    whole = convolve(u, k)
    monkeypatch.setattr("papers.s4.convolution.CACHE", 100)
    assert torch.allclose(convolve(u, k), whole, atol=1e-6)


def test_fft_lengths_have_small_factors() -> None:
    for n in range(1, 600):
        found = fft_length(n)
        assert n <= found <= max(2, 1.2 * n + 2)
        assert found % 2 == 0
        for factor in (2, 3, 5):
            while found % factor == 0:
                found //= factor
        assert found == 1


def layer(kind: str = "s4", **more: Any) -> Layer:
    init = {"s4": "legs", "s4d": "lin", "dense": "legs"}[kind]
    options = {"both_ways": False, "glu": True, "dropout": 0.0, "tied": True, "early_dropout": True} | more
    made = Layer(kind, 6, 8, 24, init, 1, True, **options)  # type: ignore[arg-type]
    made.initialise(generator())
    return made


def test_causal_layer_sees_no_future_and_the_other_sees_all() -> None:
    u = torch.randn(2, 6, 24)
    changed = u.clone()
    changed[..., -1] += 1
    one, both = layer(), layer(both_ways=True)
    with torch.no_grad():
        assert torch.allclose(one(u)[..., :-1], one(changed)[..., :-1], atol=1e-5)
        assert (both(u)[..., 0] - both(changed)[..., 0]).abs().max() > 1e-5


def test_bf16_leaves_kernel_and_convolution_in_float32() -> None:
    one, u = layer(), torch.randn(2, 6, 24)
    with torch.no_grad():
        plain = one(u)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = one(u.bfloat16())
            assert one.kernel(24).dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - plain).abs().max() < 0.03 * plain.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_dropout_drops_whole_channels_where_tied(tied: bool) -> None:
    torch.manual_seed(0)
    drop = layer(dropout=0.5, tied=tied).early
    y = drop(torch.ones(8, 6, 24))
    whole = [(row == row[0]).all().item() for row in y.flatten(0, 1)]
    assert all(whole) == tied
    assert y.mean() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("kind", ["s4", "s4d", "dense"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_net_steps_as_it_convolves(kind: str, pre_norm: bool) -> None:
    net = S4Net(
        kind=kind, inputs=2, tokens=0, classes=3, depth=2, h=6, state=8, length=10,  # type: ignore[arg-type]
        init="lin" if kind == "s4d" else "legs", copies=1, softplus=True, both_ways=False, glu=True, norm="layer",
        pre_norm=pre_norm, dropout=0.1, tied=True, early_dropout=True,
    )  # fmt: skip
    net.initialise(generator())
    net.eval()
    x = torch.randn(4, 10, 2)
    with torch.no_grad():
        stepped = list(net.steps(x))
        for length in (1, 6, 10):
            assert torch.allclose(stepped[length - 1], net(x[:, :length]), atol=2e-4)


def test_padding_enters_no_ssm() -> None:
    net = build(PRESETS["repo-listops"], 0, 18, 12, 10)
    net.initialise(generator())
    net.eval()
    x, lengths = torch.randint(1, 18, (3, 12)), torch.tensor([12, 7, 3])
    first = net.blocks[0]
    with torch.no_grad():
        h = net.encoder(x).transpose(1, 2)  # type: ignore[operator]
        mask = (torch.arange(12) < lengths[:, None]).float()[:, None]
        other = torch.where(mask.bool(), h, torch.randn_like(h))
        one, two = first(h, mask), first(other, mask)
    assert torch.allclose(one * mask, two * mask, atol=1e-5)


def test_what_learns_slowly_and_without_decay() -> None:
    net = build(PRESETS["table4-listops"], 0, 18, 50, 10)
    groups = optimiser_groups(net, 0.01, 0.05, 0.001, 0.002)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    names = {id(p): name.rpartition(".")[2] for name, p in net.named_parameters()}
    slow, dt = ({names[id(p)] for p in g["params"]} for g in groups[1:])
    assert slow == {"a_real", "a_imag", "b", "p"}
    assert dt == {"dt_parameter"}
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.01, 0.05), (0.001, 0.0), (0.002, 0.0)]
    frozen = optimiser_groups(net, 0.01, 0.05, 0.0, 0.001)
    assert len(frozen) == 2
    assert {p.requires_grad for p in groups[1]["params"]} == {False}


def test_attention_is_torchs_and_the_transformer_ignores_padding() -> None:
    attention, x = Attention(8, 2, fused=False), torch.randn(2, 5, 8)
    fused = Attention(8, 2, fused=True)
    fused.load_state_dict(attention.state_dict())
    assert torch.allclose(attention(x, None), fused(x, None), atol=1e-6)
    net = Transformer(18, 10, 2, 8, 2, 16, 20, 0.0, fused=True)
    net.initialise(generator())
    tokens, lengths = torch.randint(1, 18, (3, 9)), torch.tensor([9, 5, 2])
    short = net(tokens[2:, :2], lengths[2:])
    assert torch.allclose(net(tokens, lengths)[2:], short, atol=1e-5)


def test_schedules() -> None:
    progress = {"drops": torch.tensor(2)}
    assert schedule(PRESETS["fig4-legs"], 10, 100, progress)(50) == pytest.approx(0.04)
    epochs = schedule(PRESETS["example-s4d"], 7, 700, progress)
    assert (epochs(6), epochs(350)) == (1.0, pytest.approx(0.5))
    transformer = schedule(PRESETS["table4-transformer-listops"], 7, 5000, progress)
    assert 0.05 * transformer(1000) == pytest.approx(0.05 / math.sqrt(1000))
    assert transformer(4000) == pytest.approx(transformer(1000) / 2)


# ---- data


def test_listops_trees_are_what_the_rules_say() -> None:
    x, y = data.listops("validation", 60)
    again, _ = data.listops("validation", 30)
    assert np.array_equal(again, x[:30])
    assert not np.array_equal(data.listops("test", 30)[0], again)
    length = (x != 0).sum(1)
    assert length.min() > 501
    assert length.max() < 2001
    assert len({row.tobytes() for row in x}) == 60
    digits = operators = 0
    for row, value in zip(x, y, strict=True):
        words = [data.VOCABULARY[token] for token in row if token]
        assert words[-1] == "<eos>"
        assert data.listops_value(words[:-1]) == value
        depth = deepest = 0
        for word in words[:-1]:
            depth += word.startswith("[") - (word == "]")
            deepest = max(deepest, depth)
        assert depth == 0
        assert deepest < data.MAX_DEPTH
        digits += sum(word.isdigit() for word in words)
        operators += sum(word.startswith("[") for word in words)
    assert digits / operators == pytest.approx(5, abs=0.6)  # every operator has 6 arguments on average


def test_listops_value() -> None:
    assert data.listops_value(["[MAX", "2", "9", "[MIN", "4", "7", "]", "0", "]"]) == 9
    assert data.listops_value(["[MED", "1", "2", "9", "4", "]"]) == 3  # 3 exactly; of 1 2 5 4 it would be cut from 3
    assert data.listops_value(["[MED", "2", "3", "]"]) == 2
    assert data.listops_value(["[SM", "9", "8", "[SM", "5", "6", "]", "]"]) == 8


def test_pathfinder_draws_two_curves_two_discs() -> None:
    x, y = data.pathfinder("train", 64)
    again, labels = data.pathfinder("train", 16)
    assert np.array_equal(again, x[:16])
    assert np.array_equal(labels, y[:16])
    assert x.shape == (64, 32, 32)
    assert 16 < y.sum() < 48
    assert (x.max((1, 2)) == 255).all()
    assert (x[:, 0] == 0).mean() > 0.8  # the border stays almost free
    ink = (x > 60).mean((1, 2))
    assert 0.1 < ink.min() < ink.max() < 0.5


def test_pixels_and_permutation() -> None:
    order = data.bit_reversal(784)
    assert sorted(order.tolist()) == list(range(784))
    assert order[:5].tolist() == [0, 512, 256, 768, 128]
    picture = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    assert torch.equal(data.pixels(picture, False, 1, False)[1, 5], picture[1, 1, 1])
    assert torch.equal(data.pixels(picture, False, 1, True)[0, 1], picture[0, 2, 0])
    assert data.pixels(picture, True, 2, False).shape == (2, 4, 1)
    from PIL import Image

    noise = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)
    grey = np.asarray(Image.fromarray(noise[0].numpy()).convert("L"))
    assert np.array_equal(data.pixels(noise, True, 1, False)[0, :, 0].view(8, 8).numpy(), grey)
    train, validation = data.held_out(50)
    assert (len(train), len(validation)) == (45, 5)


def test_table_6_reads_mnist(papers_data: Path) -> None:
    held = data.load("ylecun/mnist", papers_data, (0, 0, 0), False, 1, False)
    assert [len(held.y[s]) for s in data.SPLITS] == [54_000, 6_000, 10_000]
    assert held.x["test"].shape == (10_000, 784, 1)


# ---- scripts


def ran(folder: Path, *arguments: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        launch("s4", ["--preset", *arguments, "--device", "cpu", "--output-dir", str(folder)])
    assert stop.value.code == 0
    (record,) = (read(path) for path in folder.glob("records/*.json"))
    return record


def test_dense_and_diagonal_nets_train(tmp_path: Path) -> None:
    for name, arm in (("s4d", "lin"), ("dense", "gaussian")):
        record = ran(
            tmp_path / name, "smoke", "--model", name, "--init", arm, "--dropout", "0.2", "--schedule", "plateau",
            "--patience", "0", "--kernel-lr", "0", "--epochs", "3",
        )  # fmt: skip
        assert record.status == "finished"
        assert 1 <= record.metrics["best_epoch"] <= 3


@pytest.mark.parametrize("preset", ["repo-listops", "table4-transformer-listops"])
def test_listops_nets_train(tmp_path: Path, preset: str) -> None:
    record = ran(
        tmp_path, preset, "--depth", "1", "--width", "8", "--mlp", "8", "--train-samples", "8", "--validation-samples",
        "4", "--test-samples", "4", "--batch-size", "4",
        "--train-steps", "3",
    )  # fmt: skip
    assert record.metrics["test_accuracy"] in [25.0 * i for i in range(5)]
    assert record.data.keys() == {"generated/listops"}


def test_measurements_of_tables_1_to_3(tmp_path: Path) -> None:
    scaling = ran(
        tmp_path / "1", "laptop-scaling", "--sizes", "64", "256", "--width", "8", "--state", "8", "--batch-size", "2",
        "--repeats", "1",
    ).metrics  # fmt: skip
    assert scaling["attention_mib_slope"] > scaling["layer_mib_slope"] > 0.5
    lssl = ran(tmp_path / "2", "laptop-lssl", "--sizes", "8", "32", "--length", "64", "--repeats", "1").metrics
    assert lssl["lssl_memory_ratio/32"] == pytest.approx(lssl["lssl_mib/32"] / lssl["s4_mib/32"])
    assert lssl["lssl_memory_ratio_slope"] > 0
    whole = ran(
        tmp_path / "3", "laptop-transformers", "--sizes", "64", "512", "--width", "16", "--depth", "1", "--repeats", "1"
    ).metrics  # fmt: skip
    assert whole["naive_mib_slope"] > whole["s4_mib_slope"] > 0.3
    assert whole["speed_ratio/512"] == pytest.approx(whole["naive_ms/512"] / whole["s4_ms/512"])
    assert all(value is not None for value in whole.values())


def test_memory_is_counted() -> None:
    before = torch.zeros(1 << 20)

    def work() -> None:
        held = before[:] + 1  # 4 MiB
        held = held.view(2, -1) * 2  # 8 while both are held, then 4
        (held + 1).sum()

    assert timing.mebibytes(work, torch.device("cpu")) == pytest.approx(8, abs=0.1)
    assert timing.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
