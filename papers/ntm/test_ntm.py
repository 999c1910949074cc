"""The machine against its equations, loops, autograd and torch; the tasks against their description."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.special import betaln
from torch import nn

from common.checkpoint import capture, restore
from common.claims import load
from common.errors import UserError
from common.random import generator
from papers.ntm import data, kernel
from papers.ntm.audit import audit
from papers.ntm.config import PAPER, PRESETS, Config
from papers.ntm.data import TASKS, Batch
from papers.ntm.model import NTM, Net, RMSProp, address, layout, write
from papers.ntm.sample import panels
from papers.ntm.train import Compiled, Stacked, curve_metrics, evaluate, shape_of, start

NETS = {
    "LSTM controller": Net(8, 7, 9, rows=12, columns=5),
    "feed-forward, heads": Net(8, 7, 9, lstm=0, heads=3, rows=12, columns=5, squash=1, reach=2),
    "two layers, clipped": Net(8, 7, 9, layers=2, heads=2, rows=12, columns=5, squash=1, clip=1.0),
    "LSTM alone": Net(8, 7, 9, layers=3, heads=0),
}
RULE = kernel.Rule(0, 1e-4)


def net(shape: Net, seeds: int = 1, scale: float = 3.0) -> NTM:
    """Weights large enough that nothing is nearly linear, in float64."""
    model = NTM(shape, seeds).double()
    model.initialise([generator(seed, "test") for seed in range(seeds)], "uniform", 1.0)
    with torch.no_grad():
        model.theta.mul_(scale)
    return model


def some(task: str = "repeat-copy", n: int = 3, size: tuple[int, ...] | None = (2, 2)) -> Batch:
    return data.sequences(TASKS[task], ("test",), range(n), size)


def objective(model: NTM, batch: Batch) -> torch.Tensor:
    """Nats per sequence, sequence by sequence."""
    total = model.theta.new_zeros(())
    for x, y, first, steps in zip(*batch, strict=True):
        z = model(torch.from_numpy(x[None, None, :steps]).double())[0, 0, first:]
        y = torch.from_numpy(y[first:steps]).double()
        total = total + nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum")
    return total / len(batch.steps)


# ---- counts


def test_parameters_of_the_lstm_nets_are_those_of_table_3() -> None:
    counts = audit(None)[0]
    printed = {"copy": 1_352_969, "repeat": 5_312_007, "associative": 1_344_518, "ngrams": 331_905}
    assert {name: counts[f"parameters/table3-{name}"] for name in printed} == printed
    for name, preset in PAPER.items():
        if not preset.heads:
            H, nx, ny = preset.hidden, data.task(preset.dataset).inputs, data.task(preset.dataset).outputs
            expected = 4 * H * (3 * nx + 5 * H + 3) + 6 * H + ny * (3 * H + 1)
            assert counts[f"parameters/table3-{name.split('-')[1]}"] == expected
    bits = {"copy": 84, "repeat-copy": 181.5, "associative": 18, "ngrams": 200, "sort": 128}
    assert {name: counts[f"target_bits/{name}"] for name in bits} == bits


# ---- addressing, reading, writing


def addressed_by_loops(M, w_before, k, beta, g, s, gamma) -> np.ndarray:
    """Equations 5 to 9 for one head, number by number."""
    N, S = len(M), len(s)
    K = [float(k @ M[i]) / (math.sqrt(float(k @ k)) * math.sqrt(float(M[i] @ M[i]))) for i in range(N)]
    total = sum(math.exp(beta * value) for value in K)
    w_g = [g * math.exp(beta * K[i]) / total + (1 - g) * w_before[i] for i in range(N)]
    w_s = [0.0] * N
    for i, j in product(range(N), range(N)):
        for shift in range(-(S // 2), S // 2 + 1):
            if (i - j - shift) % N == 0:
                w_s[i] += w_g[j] * s[shift + S // 2]
    sharp = [value**gamma for value in w_s]
    return np.array(sharp) / sum(sharp)


@pytest.mark.parametrize("S", [1, 3, 5])
def test_addressing_is_that_of_equations_5_to_9(S: int) -> None:
    rng, N, M, J = np.random.default_rng(S), 9, 4, 3
    memory, before = rng.normal(size=(N, M)), rng.dirichlet(np.ones(N), J)
    k, s = rng.normal(size=(J, M)), rng.dirichlet(np.ones(S), J)
    beta, g, gamma = rng.uniform(0, 5, J), rng.uniform(size=J), rng.uniform(1, 4, J)
    ours = address(*(torch.from_numpy(a) for a in (memory, before, k, beta, g, s, gamma)))
    for j in range(J):
        expected = addressed_by_loops(memory, before[j], k[j], beta[j], g[j], s[j], gamma[j])
        np.testing.assert_allclose(ours[j].numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_shift_moves_the_focus_and_wraps_around(shift: int) -> None:
    """With the gate shut, location addressing steps through memory whatever it holds (3.3.2)."""
    N = 5
    w = torch.zeros(1, N, dtype=torch.float64)
    w[0, N - 1] = 1
    s = torch.eye(3, dtype=torch.float64)[shift + 1][None]
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for step in range(1, 8):
        w = address(torch.randn(N, 3).double(), w, torch.randn(1, 3).double(), one, zero, s, 2 * one)
        assert w[0].argmax() == (N - 1 + step * shift) % N
        assert float(w.max()) == pytest.approx(1)


def test_writing_is_outer_products_in_any_order_of_heads() -> None:
    rng, N, M, R = np.random.default_rng(0), 6, 4, 3
    before, w, e, a = rng.normal(size=(N, M)), rng.dirichlet(np.ones(N), R), rng.random((R, M)), rng.normal(size=(R, M))
    expected = before.copy()
    for j in range(R):
        expected = expected * (np.ones((N, M)) - np.outer(w[j], e[j]))
    for j in range(R):
        expected = expected + np.outer(w[j], a[j])
    for order in ([0, 1, 2], [2, 0, 1]):
        ours = write(torch.from_numpy(before), *(torch.from_numpy(v[order]) for v in (w, e, a)))
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-13)
    focused = np.eye(N)[[2]]
    written = write(torch.from_numpy(before), *map(torch.from_numpy, (focused, np.ones((1, M)), a[:1])))
    read = torch.from_numpy(focused) @ written
    np.testing.assert_allclose(read[0].numpy(), a[0], rtol=1e-13)  # what was written


# ---- the compiled kernel and the hand-written backward pass against autograd


@pytest.mark.parametrize("name", NETS)
def test_kernel_is_the_model_and_its_gradient_is_autograds(name: str) -> None:
    model, batch = net(NETS[name]), some()
    objective(model, batch).backward()
    assert model.theta.grad is not None
    expected = model.theta.grad[0].numpy()
    shape, theta, o, n = model.net, model.theta.detach()[0].numpy().copy(), kernel.offsets(model.net), len(batch.steps)
    tape, gradient, said = kernel.make_tape(shape, 9, theta.dtype), np.zeros_like(theta), np.zeros((n, 3))
    moments, left_out = np.zeros((3, len(theta))), np.zeros(1, np.int64)
    kernel.run(
        shape, RULE, theta, o, tape, gradient, moments, left_out, 0, n + 1, *batch, said
    )  # one short of an update
    gradient *= (n + 1) / n
    assert said[:, 0].mean() * math.log(2) == pytest.approx(objective(model, batch).item(), rel=1e-12)
    for part, first, last in zip(layout(shape), o[:-1], o[1:], strict=True):
        if last > first:
            assert np.abs(expected[first:last]).max() > 1e-6, part
            np.testing.assert_allclose(gradient[first:last], expected[first:last], rtol=1e-10, atol=1e-11, err_msg=part)
    assert not moments.any()


@pytest.mark.parametrize("name", ["LSTM controller", "feed-forward, heads"])
def test_gradient_through_five_steps_by_finite_differences(name: str) -> None:
    shape = NETS[name]._replace(inputs=2, outputs=1, hidden=3, rows=5, columns=2)
    model = net(shape)
    x = torch.rand(1, 2, 5, 2, dtype=torch.float64, generator=generator("gradcheck"))

    def outputs(theta: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, {"theta": theta}, (x,))

    assert torch.autograd.gradcheck(outputs, model.theta.detach().requires_grad_(), fast_mode=True)


def in_float64(nets: Compiled) -> Compiled:
    for name in ("theta", "moments"):
        nets.state[name] = nets.state[name].astype(np.float64)
    nets.gradient = nets.gradient.astype(np.float64)
    return nets


def doubled(nets: Stacked) -> Stacked:
    nets.net.double()
    for moments in nets.optimizer.state.values():
        for name, value in moments.items():
            moments[name] = value.double()
    return nets


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam", "clip_value": 0.0, "clip_norm": 0.5, "eps": 1e-8}])
def test_compiled_and_stacked_nets_learn_alike(changes: dict) -> None:
    """Sequences of all lengths, several of them an update, several seeds; clipping takes part."""
    cfg = replace(PRESETS["smoke"], batch_size=4, **{"clip_value": 0.3, **changes})
    compiled, stacked = in_float64(Compiled(cfg, [3, 4])), doubled(Stacked(cfg, [3, 4], "cpu"))
    for update in (0, 2):
        if update:  # as if resumed from a checkpoint
            saved, stacked = capture(stacked.state), Stacked(cfg, [3, 4], "cpu")
            stacked.net.double()
            restore(stacked.state, saved)
        batches = [data.sequences(TASKS["copy"], (seed, "train"), range(4 * update, 4 * update + 8)) for seed in (3, 4)]
        ours, theirs = (nets.train(batches, update) for nets in (compiled, stacked))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    theta = stacked.net.theta.detach().numpy()
    assert np.abs(theta - start(cfg, [3, 4]).theta.detach().numpy()).max() > 1e-4
    np.testing.assert_allclose(compiled.state["theta"], theta, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(compiled.cost(batches), stacked.cost(batches), rtol=1e-9)


def test_sequences_of_different_lengths_batch_together() -> None:
    cfg = replace(PRESETS["smoke"], dataset="generated/repeat-copy")
    batch = data.sequences(TASKS["repeat-copy"], ("lengths",), range(8))
    assert len(set(batch.steps)) > 4
    stacked = Stacked(cfg, [0], "cpu")
    together = stacked.cost([batch])[0]
    for i, steps in enumerate(batch.steps):
        one = slice(i, i + 1)
        alone = Batch(batch.x[one, :steps], batch.y[one, :steps], batch.first[one], batch.steps[one])
        np.testing.assert_allclose(stacked.cost([alone])[0, 0], together[i], rtol=1e-5)
    np.testing.assert_allclose(Compiled(cfg, [0]).cost([batch])[0], together, rtol=1e-4)
    np.testing.assert_allclose(evaluate(stacked, [batch]), together.mean(0, keepdims=True))


def test_rmsprop_is_the_centred_one_with_the_constant_inside_the_root() -> None:
    theta, n, m, d = 0.5, 0.0, 0.0, 0.0
    p = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = RMSProp([p], lr=0.01)
    q = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    ours, theirs = RMSProp([q], 0.01, eps=0.0), nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    torchs = torch.optim.RMSprop([theirs], lr=0.01, alpha=0.95, momentum=0.9, eps=0.0, centered=True)
    for gradient in np.random.default_rng(0).normal(size=20):
        n, m = 0.95 * n + 0.05 * gradient**2, 0.95 * m + 0.05 * gradient
        d = 0.9 * d - 0.01 * gradient / math.sqrt(n - m * m + 1e-4)
        theta += d
        p.grad = torch.tensor([gradient])
        q.grad = theirs.grad = p.grad.clone()
        for one in (optimizer, ours, torchs):
            one.step()
    assert p.item() == pytest.approx(theta, rel=1e-12)
    torch.testing.assert_close(q.detach(), theirs.detach())


# ---- the LSTM it is compared with


@pytest.mark.parametrize("layers", [1, 3])
def test_the_lstm_is_torchs_where_inputs_do_not_skip(layers: int) -> None:
    H, n_in = 7, 4
    model = net(Net(n_in, 2, H, layers=layers, heads=0), scale=1.0)
    theirs = nn.LSTM(n_in, H, layers, batch_first=True).double()
    with torch.no_grad():
        part = model.parts()
        for layer in range(layers):
            W = part[f"layer{layer}"][0]
            if layer:
                W[:n_in] = 0  # torch has no skips
            for name, value in (("ih", W[n_in : n_in + H] if layer else W[:n_in]), ("hh", W[-1 - H : -1])):
                getattr(theirs, f"weight_{name}_l{layer}").copy_(value.T)
            getattr(theirs, f"bias_ih_l{layer}").copy_(W[-1])
            getattr(theirs, f"bias_hh_l{layer}").zero_()
        if layers > 1:
            part["output"][0, : (layers - 1) * H] = 0
    x = torch.randn(1, 3, 11, n_in, dtype=torch.float64, generator=generator("x"))
    part = model.parts()
    first = tuple(part[name][0][:, None].expand(-1, 3, -1).contiguous() for name in ("h", "c"))
    expected = theirs(x[0], first)[0] @ part["output"][0, -1 - H : -1] + part["output"][0, -1]
    torch.testing.assert_close(model(x)[0], expected, rtol=1e-12, atol=1e-12)


# ---- robustness


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scale", [0.0, 50.0, 1e4])
def test_no_weights_make_it_nan(name: str, scale: float) -> None:
    """Empty memory, keys of zero, weightings sharpened beyond the smallest float (gamma of thousands)."""
    batch = some(size=(10, 4))
    model = net(NETS[name], scale=scale)
    nets = in_float64(Compiled(PRESETS["smoke"], [0]))
    nets.net, nets.offsets, nets.batch_size = model.net, kernel.offsets(model.net), 1
    theta = model.theta.detach().numpy()
    nets.state |= {"theta": theta.copy(), "moments": np.zeros((1, 3, theta.shape[1]))}
    nets.gradient = np.zeros_like(theta)
    assert np.isfinite(nets.train([batch], 0)).all()
    assert np.isfinite(nets.state["theta"]).all()
    value = objective(model, batch)
    assert bool(torch.autograd.grad(value, model.theta)[0].isfinite().all())


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam", "clip_value": 0.0, "clip_norm": 0.5, "eps": 1e-8}])
def test_a_gradient_that_is_no_number_moves_nothing(changes: dict) -> None:
    """Of its own net; the update is counted, and learning goes on with the next."""
    cfg = replace(PRESETS["smoke"], batch_size=2, **changes)
    batches = [data.sequences(TASKS["copy"], (seed, "train"), range(4)) for seed in (3, 4)]
    batches[0].x[1, 0] = np.nan
    compiled = in_float64(Compiled(cfg, [3, 4]))
    stacked, fresh = (doubled(Stacked(cfg, seeds, "cpu")) for seeds in ([3, 4], [3]))
    nets: Compiled | Stacked
    for nets in (compiled, stacked):
        nets.train(batches, 0)
        assert np.asarray(nets.state["left_out"])[:, 0].tolist() == [1, 0]
    theta = stacked.net.theta.detach()
    np.testing.assert_allclose(compiled.state["theta"], theta.numpy(), rtol=1e-8, atol=1e-10)
    if not changes:  # as if the first update had not been; Adam counts it
        fresh.train([Batch(*(part[2:] for part in batches[0]))], 0)
        torch.testing.assert_close(fresh.net.theta.detach()[0], theta[0], rtol=1e-9, atol=1e-12)


def test_a_net_in_single_precision_learns_short_copies() -> None:
    """Cut to vectors of at most five, the copy task is soon better than guessing, in the precision that is trained."""
    cfg = replace(PRESETS["fig3-copy-ntm-ff"], rows=16, columns=10, hidden=40, lr=1e-3)
    nets = Compiled(cfg, [0])
    parts = [data.sequences(TASKS["copy"], (0,), range(20 * i, 20 * i + 20), (1 + i % 5,)) for i in range(150)]
    costs = [nets.train([part], 20 * i)[0, :, 0].mean() for i, part in enumerate(parts)]
    assert np.mean(costs[-10:]) < 8 < 20 < np.mean(costs[:5])  # guessing costs 24 bits, and three for the ninth channel
    assert nets.state["theta"].dtype == np.float32


# ---- the tasks


def test_copy_sequences() -> None:
    batch = data.sequences(TASKS["copy"], ("t",), range(300))
    lengths = (batch.steps - 2) // 2
    assert (lengths.min(), lengths.max()) == (1, 20)
    assert lengths.mean() == pytest.approx(10.5, abs=1.2)
    for x, y, first, steps, n in zip(*batch, lengths, strict=True):
        assert (x[1 : n + 1, :8] == y[first:steps, :8]).all()
        assert (x[0, 8], x[n + 1, 9], x[:, 8:].sum(), y[:, 8].sum()) == (1, 1, 2, 0)
        assert x[first:].sum() == y[:first].sum() == 0
        assert first == n + 2
    assert batch.x[..., :8].sum() / (8 * lengths.sum()) == pytest.approx(0.5, abs=0.02)


def test_repeat_copy_sequences() -> None:
    told = []
    for n, r in ((1, 1), (3, 4), (10, 20)):
        x, y, first = TASKS["repeat-copy"].make(np.random.default_rng(0), n, r)
        assert len(x) == TASKS["repeat-copy"].steps(n, r) == first + n * r + 1
        assert (y[first:-1, :6].reshape(r, n, 6) == x[:n, :6]).all()
        assert (y[:, 6].sum(), y[-1, 6], y[-1, :6].sum(), x[n, 6], x[:, 6].sum()) == (1, 1, 0, 1, 1)
        assert np.count_nonzero(x[:, 7]) == 1
    for r in range(1, 11):
        told.append(TASKS["repeat-copy"].make(np.random.default_rng(0), 1, r)[0][2, 7])
    assert (np.mean(told), np.var(told)) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))


def test_associative_recall_sequences() -> None:
    batch = data.sequences(TASKS["associative"], ("t",), range(300))
    items, places = (batch.steps - 8) // 4, []
    assert set(items) == {2, 3, 4, 5, 6}
    for x, y, first, n in zip(*batch[:3], items, strict=True):
        shown = x[: 4 * n].reshape(n, 4, 8)
        assert (shown[:, 0, 6] == 1).all()
        assert x[:, 6].sum() == n
        assert np.flatnonzero(x[:, 7]).tolist() == [4 * n, 4 * n + 4]
        query = x[4 * n + 1 : 4 * n + 4, :6]
        found = [i for i in range(n) if (shown[i, 1:, :6] == query).all()]
        assert any((shown[i + 1, 1:, :6] == y[first : first + 3]).all() for i in found if i + 1 < n)
        places.append(found[0] / max(1, n - 2))
        assert y[:first].sum() == 0
    assert (min(places), max(places)) == (0, 1)


def test_sort_sequences() -> None:
    for x, y, first, steps in zip(*data.sequences(TASKS["sort"], ("t",), range(50)), strict=True):
        assert (first, steps) == (20, 36)
        assert (np.abs(x[:20, 8]) <= 1).all()
        for place, i in enumerate(sorted(range(20), key=lambda i: -x[i, 8])[:16]):
            assert (y[20 + place] == x[i, :8]).all()


def test_bayes_is_optimal_by_enumeration() -> None:
    """P(next | before) = P(all) / P(before), each summed over the Beta(1/2, 1/2) prior of every context exactly."""

    def log_probability(bits: tuple[int, ...]) -> float:
        counts: dict[tuple[int, ...], list[int]] = {}
        for t in range(5, len(bits)):
            counts.setdefault(bits[t - 5 : t], [0, 0])[bits[t]] += 1
        prior = betaln(0.5, 0.5)
        return min(5, len(bits)) * math.log(0.5) + sum(betaln(b + 0.5, a + 0.5) - prior for a, b in counts.values())

    total = 0.0
    for bits in product((0, 1), repeat=10):
        p = data.bayes(np.array(bits, np.float32))
        for t in range(10):
            expected = math.exp(log_probability((*bits[:t], 1)) - log_probability(bits[:t]))
            assert p[t] == pytest.approx(expected, rel=1e-12)
        total += math.exp(log_probability(bits))
    assert total == pytest.approx(1)


def test_ngrams_come_from_their_source_and_cost_what_theory_says() -> None:
    batch = data.sequences(TASKS["ngrams"], ("t",), range(2000))
    assert (batch.x[:, 1:] == batch.y[:, :-1]).all()
    assert not batch.x[:, 0].any()
    # Only where the source is drawn from the estimator's prior does what it gives a chance of p happen p of the time.
    bits, p = batch.y[:, 5:, 0], np.stack([data.bayes(y[:, 0]) for y in batch.y])[:, 5:]
    for low in np.arange(0, 1, 0.1):
        here = (p >= low) & (p < low + 0.1)
        standard_error = math.sqrt((p[here] * (1 - p[here])).sum()) / here.sum()
        assert abs(bits[here].mean() - p[here].mean()) < 4 * standard_error
    assert data.bayes_cost(batch) == pytest.approx(133.08, abs=4 * 35.8 / math.sqrt(2000))


def test_a_sequence_is_a_function_of_its_number_and_key_alone() -> None:
    for task in TASKS.values():
        many, one = (data.sequences(task, (1, "train"), numbers) for numbers in (range(10), range(7, 8)))
        steps = one.steps[0]
        assert many.steps[7] == steps
        assert (many.x[7, :steps] == one.x[0]).all()
        assert (many.y[7, :steps] == one.y[0]).all()
        assert not np.array_equal(many.x, data.sequences(task, (2, "train"), range(10)).x)


def test_generators_are_the_declared_ones() -> None:
    declared = {d.name: d.fingerprint for d in load("ntm").data}
    assert declared == {f"generated/{name}": data.fingerprint(f"generated/{name}") for name in TASKS}


# ---- configuration, metrics, pictures


def test_presets_are_those_of_tables_1_to_3() -> None:
    table = {
        name: (p.hidden, p.layers, p.heads, p.rows, p.columns, p.lr)
        for name, p in PAPER.items()
        if p.controller != "none"
    }
    assert table == {
        "fig3-copy-ntm-ff": (100, 1, 1, 128, 20, 1e-4), "fig3-copy-ntm-lstm": (100, 1, 1, 128, 20, 1e-4),
        "fig7-repeat-ntm-ff": (100, 1, 1, 128, 20, 1e-4), "fig7-repeat-ntm-lstm": (100, 1, 1, 128, 20, 1e-4),
        "fig10-associative-ntm-ff": (256, 1, 4, 128, 20, 1e-4),
        "fig10-associative-ntm-lstm": (100, 1, 1, 128, 20, 1e-4),
        "fig13-ngrams-ntm-ff": (100, 1, 1, 128, 20, 3e-5), "fig13-ngrams-ntm-lstm": (100, 1, 1, 128, 20, 3e-5),
        "fig18-sort-ntm-ff": (512, 1, 8, 128, 20, 3e-5), "fig18-sort-ntm-lstm": (100, 2, 5, 128, 20, 3e-5),
        "fig3-copy-lstm": (256, 3, 0, 128, 20, 3e-5), "fig7-repeat-lstm": (512, 3, 0, 128, 20, 3e-5),
        "fig10-associative-lstm": (256, 3, 0, 128, 20, 1e-4), "fig13-ngrams-lstm": (128, 3, 0, 128, 20, 1e-4),
        "fig18-sort-lstm": (128, 3, 0, 128, 20, 3e-5), "s45-sort-ntm-ff-1-head": (512, 1, 1, 128, 20, 3e-5),
    }  # fmt: skip
    assert {p.controller for name, p in PAPER.items() if "-ff" in name} == {"feedforward"}


def test_curve_metrics() -> None:
    curve = np.zeros((2, 4, 3))
    curve[0, :, 0], curve[1, :, 0] = [80, 3, 0.05, 0.2], [80, 70, 60, 50]
    found = curve_metrics(Config(report_sequences=10, cost_at=(20, 25, 90)), curve)
    assert found["sequences"].tolist() == [30, 40]
    assert found["solved"].tolist() == [100, 0]
    assert found["final_cost"].tolist() == [0.2, 50]
    assert found["cost_at_20"].tolist() == [3, 70]
    assert found["cost_at_25"].tolist() == [0.05, 60]
    assert "cost_at_90" not in found


@pytest.mark.parametrize("scheme", ["uniform", "constant", "random", "learned"])
def test_initial_nets(scheme: str) -> None:
    cfg = replace(PRESETS["fig3-copy-ntm-lstm"], memory_init=scheme)  # type: ignore[arg-type]
    both, alone = start(cfg, [1, 2]), start(cfg, [2])
    assert torch.equal(both.theta[1], alone.theta[0])
    part = alone.parts()
    memory = part["memory"]
    if scheme == "constant":
        assert (memory == 1e-6).all()
    else:
        spread = {"uniform": 148**-0.5 / 3**0.5, "learned": (6 / 2561) ** 0.5 / 3**0.5, "random": 0.42}[scheme]
        assert float(memory.detach().std()) == pytest.approx(spread, rel=0.05)
    bias = part["layer0"][0, -1]
    assert not bias.any()
    forgetting = start(replace(cfg, forget_bias=1.0), [2]).parts()["layer0"][0, -1]
    assert forgetting.tolist() == [0.0] * 100 + [1.0] * 100 + [0.0] * 200  # gates i, f, cell, o


def test_pictures_show_one_sequence() -> None:
    cfg = replace(PRESETS["smoke"], dataset="generated/repeat-copy", heads=2)
    shown = panels(start(cfg, [0]), TASKS["repeat-copy"], 0, (3, 2))
    steps = TASKS["repeat-copy"].steps(3, 2)
    assert {name: tuple(value.shape) for name, value in shown.items()} == {
        "inputs": (8, steps), "targets": (7, steps), "outputs": (7, steps), "adds": (12, steps), "reads": (12, steps),
        "write weightings": (48, steps), "read weightings": (48, steps),
    }  # fmt: skip
    torch.testing.assert_close(shown["write weightings"].view(2, 24, -1).sum(1), torch.ones(2, steps))


def test_what_cannot_be_is_refused() -> None:
    for changes in (
        {"controller": "feedforward", "heads": 0}, {"shift_reach": 12}, {"dataset": "generated/copies"}, {"heads": -1},
        {"columns": 0}, {"batch_size": 0},
    ):  # fmt: skip
        with pytest.raises(UserError):
            shape_of(replace(PRESETS["smoke"], **changes))
    for task, text in (("copy", "3x4"), ("repeat-copy", "30"), ("copy", "many"), ("associative", "1")):
        with pytest.raises(UserError, match="size"):
            data.parse_size(TASKS[task], text)
