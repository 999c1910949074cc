"""The 1997 cell against its equations, autograd and torch; the generators against an independent acceptor."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.claims import load
from common.errors import UserError
from papers.lstm import data, kernel
from papers.lstm.audit import COUNTED, audit
from papers.lstm.config import PRESETS, Config
from papers.lstm.model import LSTM
from papers.lstm.train import Trial, build, rule_of, shape_of, start, task_of, worth_logging

# ---- counts


def test_weights_are_those_of_tables_1_to_10() -> None:
    printed = [264, 276, 10504, 364, 664, 1264, 3064, 6064, 102, 93, 93, 156, 308, 424]
    assert audit(None)[0] == dict(zip(COUNTED, printed, strict=True))


# ---- the compiled kernel against autograd

NETS = {
    "1997": Config(),
    "reber": PRESETS["table1-3x2-lr0.5"],
    "2a": replace(PRESETS["table2-lstm"], distractors=6),
    "2b": replace(PRESETS["s52-task2b"], distractors=7),
    "2c": replace(PRESETS["table3-50"], distractors=5, lag=9),
    "3c": replace(PRESETS["table6-T100N3"], min_length=20),
    "adding": replace(PRESETS["table7-T100"], min_length=22),
    "gers": replace(PRESETS["gers-forget"], update="sequence", reset=True, stop="window"),
    "statedecay": replace(PRESETS["gers-statedecay"], update="sequence", reset=True, stop="window"),
    "no output gates": PRESETS["s51-no-output-gates"],
    "full": PRESETS["s6-full-gradient"],
    "full, decay": replace(
        PRESETS["gers-forget"], update="sequence", reset=True, stop="window", gradient="full", self_recurrence=0.9
    ),
    "full, 2a": replace(PRESETS["table2-lstm"], distractors=6, gradient="full"),
}


def dense(sequences: data.Sequences, i: int, inputs: int) -> torch.Tensor:
    """Sequence i as (1, 1, t, i)."""
    x = torch.zeros(sequences.start[i + 1] - sequences.start[i], inputs, dtype=torch.float64)
    for t, row in enumerate(range(sequences.start[i], sequences.start[i + 1])):
        for unit, value in zip(sequences.unit[row], sequences.value[row], strict=True):
            x[t, unit] += value
    return x[None, None]


def objective(
    net: LSTM, cfg: Config, sequences: data.Sequences, i: int, fed_back: torch.Tensor | None = None
) -> torch.Tensor:
    """Half the squared error of one sequence, written from the task's definition."""
    y = net(dense(sequences, i, net.inputs), fed_back)[0, 0]
    total = y.new_zeros(())
    for t, row in enumerate(range(sequences.start[i], sequences.start[i + 1])):
        if sequences.target[row] >= 0:
            target = torch.zeros(net.outputs, dtype=torch.float64)
            target[sequences.target[row]] = sequences.amount[row]
            if cfg.targets == "legal":
                target = torch.tensor([float(int(sequences.legal[row]) >> k & 1) for k in range(net.outputs)]).double()
            total = total + 0.5 * (y[t] - target).square().sum()
    return total


def kernel_steps(
    cfg: Config, net: LSTM, sequences: data.Sequences, first: int, last: int, lr: float
) -> list[np.ndarray]:
    """W, V after learning from some sequences."""
    W, V, learns = net.arrays()
    window = (np.zeros(5, dtype=np.int64), np.zeros(5), np.zeros(2, dtype=np.int64))
    rule = rule_of(cfg)._replace(max_wrong=-1, stream=0)
    carry = kernel.empty_carry(shape_of(net))
    read, _, stopped = kernel.run(
        shape_of(net), rule, W, V, learns, carry, lr, 1, sequences, first, last, 0, window, np.zeros((3, last - first))
    )
    assert (read, stopped) == (last - first, False)
    return [W, V]


def larger(cfg: Config) -> LSTM:
    """A net with weights large enough that nothing is nearly linear."""
    return start(replace(cfg, init_range=1.0), 3)


@pytest.mark.parametrize("name", NETS)
def test_kernel_learns_by_the_gradient_autograd_finds(name: str) -> None:
    cfg = NETS[name]
    net = larger(cfg)
    sequences, _ = data.Source(*task_of(cfg), data.key_of("test", name), 3).read(0, 3)
    before, after = net.arrays()[:2], kernel_steps(cfg, net, sequences, 0, 1, lr=1.0)
    objective(net, cfg, sequences, 0).backward()
    gradient = LSTM.arrays(_of_gradients(net))[:2]
    for b, a, g in zip(before, after, gradient, strict=True):
        assert np.abs(g).max() > 1e-4
        np.testing.assert_allclose(a - b, -g, rtol=1e-9, atol=1e-10)


def _of_gradients(net: LSTM) -> LSTM:
    """The same net with its gradients in the place of its weights."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p.grad if p.grad is not None else torch.zeros_like(p))
    return net


@pytest.mark.parametrize("name", ["1997", "gers"])
def test_gradient_is_that_of_the_truncated_objective_by_finite_differences(name: str) -> None:
    cfg = NETS[name]
    net = larger(cfg)
    sequences, _ = data.Source(*task_of(cfg), data.key_of("test", name), 3).read(0, 3)
    x = dense(sequences, 0, net.inputs)
    with torch.no_grad():
        fed_back = nn.functional.pad(net.states(x)[..., : net.fed_back], (0, 0, 1, 0))[:, :, :-1]  # y(t-1)
    objective(net, cfg, sequences, 0).backward()
    for p in net.parameters():
        assert p.grad is not None
        for index in np.random.default_rng(0).integers(p.numel(), size=6):
            with torch.no_grad():
                values = []
                for step in (1e-5, -2e-5):
                    p.view(-1)[index] += step
                    values.append(float(objective(net, cfg, sequences, 0, fed_back)))
                p.view(-1)[index] += 1e-5
            assert float(p.grad.view(-1)[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_kernel_equals_equations_of_appendix_a1_written_out() -> None:
    """One block of one cell, every partial derivative as the appendix has it, weights changed at every step."""
    cfg = replace(PRESETS["gers-standard"], blocks=1, block_size=1, update="step", recurrence="all", stop="window",
                  input_gate_bias=(), output_gate_bias=(), outputs_see_inputs=False, hidden_biases="all")  # fmt: skip
    net = larger(cfg)
    sequences, _ = data.Source(*task_of(cfg), data.key_of("a1"), 1).read(0, 1)
    W, V, _ = net.arrays()  # columns of W: cell, input gate, output gate
    after = kernel_steps(cfg, net, sequences, 0, 1, lr=0.3)

    def f(v):
        return 1 / (1 + np.exp(-v))

    y, s, ds_c, ds_in = np.zeros(3), 0.0, np.zeros(11), np.zeros(11)
    for row in range(sequences.start[1]):
        u = np.concatenate([np.eye(7)[sequences.unit[row, 0]], y, [1.0]])  # y^u(t-1), inputs, bias
        net_c, net_in, net_out = u @ W
        y_in, y_out, g = f(net_in), f(net_out), 4 * f(net_c) - 2
        ds_c += 4 * f(net_c) * (1 - f(net_c)) * y_in * u
        ds_in += g * y_in * (1 - y_in) * u
        s += y_in * g
        h, dh = 2 * f(s) - 1, 2 * f(s) * (1 - f(s))
        y_c = y_out * h
        y_k = f(V[0] * y_c + V[1])
        legal = np.array([int(sequences.legal[row]) >> k & 1 for k in range(7)])
        e_k = y_k * (1 - y_k) * (legal - y_k)
        e_s, e_out = y_out * dh * (V[0] @ e_k), y_out * (1 - y_out) * h * (V[0] @ e_k)
        W += 0.3 * np.stack([e_s * ds_c, e_s * ds_in, e_out * u], 1)
        V += 0.3 * np.stack([e_k * y_c, e_k])
        y = np.array([y_c, y_in, y_out])
    np.testing.assert_allclose(after[0], W, rtol=1e-10)
    np.testing.assert_allclose(after[1], V, rtol=1e-10)


@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_error_inside_the_carousel_neither_grows_nor_decays(keep: float) -> None:
    """Over 1,000 steps the error is kept exactly; with a self-recurrence of 0.9 it vanishes."""
    net = LSTM(1, 1, 1, 1, output_gates=False, h="identity", self_recurrence=keep).double()
    net.initialise([torch.Generator().manual_seed(0)], 0.1)
    x = torch.randn(1, 1, 1000, 1, dtype=torch.float64, requires_grad=True)
    s = net.states(x)[0, 0, :, 0]  # with h the identity and no output gate, a cell shows its state
    first, last = (float(torch.autograd.grad(s[t], x, retain_graph=True)[0][0, 0, 0]) for t in (0, -1))
    assert last == pytest.approx(keep**999 * first, rel=1e-9)


# ---- the variant torch has


@pytest.mark.parametrize("truncated", [True, False])
def test_forget_gate_variant_is_torch_nn_lstm(truncated: bool) -> None:
    net = LSTM(5, 3, 4, 1, seeds=2, recurrence="cells", forget_gates=True, truncated=truncated).double()
    net.initialise([torch.Generator().manual_seed(i) for i in range(2)], 1.0)
    x = torch.randn(2, 6, 20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    y = net(x)
    for seed in range(2):
        theirs = nn.LSTM(5, 4, batch_first=True).double()
        with torch.no_grad():
            for p, w in zip(theirs.parameters(), net.torch_weights(seed), strict=True):
                p.copy_(w)
        out = torch.sigmoid(theirs(x[seed])[0] @ net.w_output[seed] + net.b_output[seed])
        torch.testing.assert_close(y[seed], out, rtol=1e-12, atol=1e-12)


def test_full_gradient_through_torch_lstm_equals_ours_step_by_step() -> None:
    net = LSTM(5, 3, 4, 1, recurrence="cells", forget_gates=True, truncated=False).double()
    net.initialise([torch.Generator().manual_seed(1)], 1.0)
    x = torch.randn(1, 6, 20, 5, dtype=torch.float64)
    fused = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    net._fused = lambda: False  # type: ignore[method-assign]
    for a, b in zip(fused, torch.autograd.grad(net(x).square().sum(), list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# ---- data


def accepts(text: str) -> bool:
    """An embedded Reber string? Independent of the generator: a state machine by name."""
    graph = {"0T": 1, "0P": 2, "1S": 1, "1X": 3, "2T": 2, "2V": 4, "3X": 2, "3S": 5, "4P": 3, "4V": 5}
    if (
        len(text) < 9
        or text[0] != "B"
        or text[1] not in "TP"
        or text[-2:] != text[1] + "E"
        or text[2] + text[-3] != "BE"
    ):
        return False
    node: int | None = 0
    for symbol in text[3:-3]:
        node = graph.get(f"{node}{symbol}")
    return node == 5


def sequences_of(cfg: Config, count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, data.Sequences, slice]]:
    """(units, values, all, rows) of the first sequences of a trial."""
    out, made = data.Source(*task_of(cfg), data.key_of(seed, "data"), count, rows=10**6).read(0, count)
    rows = [slice(out.start[i], out.start[i + 1]) for i in range(made)]
    return [(out.unit[r], out.value[r], out, r) for r in rows]


def test_random_numbers_by_hand_and_uniform() -> None:
    def mix(x: int) -> int:
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
            x = (x ^ x >> shift) * factor % 2**32
        return x

    key, n = data.key_of(0, "data"), 12345
    rng = np.zeros(3, dtype=np.int64)
    data._begin(rng, key, n)
    a, b = mix(int(key[0]) ^ mix(n)), mix((int(key[1]) + mix(n ^ 0x5BD1E995)) % 2**32)
    drawn = [data.uniform(rng) for _ in range(1000)]
    assert drawn == [(mix(a ^ mix((b + i * 0x9E3779B9) % 2**32)) + 0.5) / 2**32 for i in range(1, 1001)]
    many = np.concatenate(
        [[data.uniform(rng) for _ in range(50)] for n in range(2000) if data._begin(rng, key, n) is None]
    )
    table = many.reshape(2000, 50)
    counts = np.histogram(many, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * math.sqrt(2 * 99)
    for pairs in (table[:, :-1] * table[:, 1:], table[:-1] * table[1:]):  # neighbours in a sequence, and in number
        assert abs(pairs.mean() - 0.25) < 5 * math.sqrt(7 / 144 / pairs.size)


def test_reber_strings_and_their_legal_successors() -> None:
    cfg = PRESETS["table1-3x2-lr0.5"]
    source = data.Source(*task_of(cfg), data.key_of(0, "data"), 400, rows=10**6)
    sequences, made = source.read(0, 400)
    texts = data.strings(sequences, made)
    assert all(map(accepts, texts))
    assert not accepts(texts[0][:-2] + ("T" if texts[0][1] == "P" else "P") + "E")
    # what follows a prefix in a large sample is exactly what is called legal
    follows: dict[str, set[int]] = {}
    for i, text in enumerate(texts):
        for t, row in enumerate(range(sequences.start[i], sequences.start[i + 1] - 1)):
            assert sequences.target[row] == data.REBER_SYMBOLS.index(text[t + 1])
            follows.setdefault(text[: t + 1], set()).add(int(sequences.target[row]))
    for i, text in enumerate(texts):
        for t, row in enumerate(range(sequences.start[i], sequences.start[i + 1] - 1)):
            legal = {k for k in range(7) if int(sequences.legal[row]) >> k & 1}
            assert follows[text[: t + 1]] <= legal
            assert len(legal) <= 2
    assert len(follows["B"]) == 2
    assert len(follows["BT"]) == 1
    train, test = data.reber_sets(data.key_of("reber sets", 0), 256)
    assert len(train.start) == len(test.start) == 257
    assert not set(data.strings(train, 256)) & set(data.strings(test, 256))
    trial = Trial(cfg, 0)  # exemplars of a trial come from its training set
    picked, made = trial.train_data.read(0, 200)
    assert set(data.strings(picked, made)) <= set(data.strings(trial.test_pool[0], 256))
    assert len(set(data.strings(picked, made))) > 50


def test_long_lag_sequences() -> None:
    for units, _, out, r in sequences_of(PRESETS["table2-lstm"], 50):
        w = int(units[0, 0])
        assert w in (99, 100)
        assert units[:, 0].tolist() == [w, *range(99), w]
        assert out.target[r].tolist() == [*range(99), w, -1]
    middles = [u[1:-1, 0] for u, *_ in sequences_of(PRESETS["s52-task2b"], 50)]
    assert {len(m) for m in middles} == {99}
    assert len(set(np.concatenate(middles).tolist())) == 99
    extra = []
    for units, _, out, r in sequences_of(PRESETS["table3-50"], 1000):
        u = units[:, 0].tolist()
        assert u[0] == 51
        assert u[1] in (52, 53)
        assert u[-1] == 50
        assert max(u[2:-1]) < 50
        assert out.target[r].tolist() == [-1] * (len(u) - 1) + [u[1] - 52]
        extra.append(len(u) - 53)
    assert min(extra) == 0
    assert np.mean(extra) == pytest.approx(9, abs=1.5)


def test_two_sequence_problem() -> None:
    for preset, sigma, noise in (("table4-T100N3", 0, 0), ("table5-T100N3", 0.2, 0), ("table6-T100N3", 0.2, 0.1)):
        all_values, signal, targets = [], [], []
        for _, values, out, r in sequences_of(PRESETS[preset], 2000):
            assert 100 <= len(values) <= 110
            assert (out.target[r][:-1] == -1).all()
            assert out.target[r][-1] == 0
            clean = out.clean[r][-1]
            sign = {1.0: 1, 0.0: -1, 0.2: 1, 0.8: -1}[clean]
            signal.append(values[:3, 0] - sign)
            all_values.append(values[3:, 0])
            targets.append(out.amount[r][-1] - clean)
        assert np.var(np.concatenate(all_values)) == pytest.approx(0.2, rel=0.02)  # variance, not standard deviation
        assert np.var(signal) == pytest.approx(sigma, rel=0.1)
        assert np.var(targets) == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize("preset", ["table7-T100", "table8-nseq13"])
def test_marked_pairs(preset: str) -> None:
    product, firsts = preset == "table8-nseq13", 0
    positions = []
    for _, values, out, r in sequences_of(PRESETS[preset], 2000):
        x, marker = values.T
        marked = np.flatnonzero(marker == 1)
        assert len(marked) == 2
        assert marked.min() < 10
        assert marked.max() <= 49
        assert marker[-1] == -1
        assert marker[0] == -1 or 0 in marked
        assert 100 <= len(x) <= 110
        assert x.min() >= -1
        assert x.max() <= 1
        assert (x.min() >= 0) == product
        a, b = x[marked]
        firsts += 0 in marked
        assert 0 not in marked or a == (1 if product else 0)
        assert out.amount[r][-1] == pytest.approx(a * b if product else 0.5 + (a + b) / 4, abs=1e-15)
        positions.append(marked.max())
    assert 0.08 < firsts / 2000 < 0.16
    assert max(positions) == 49


@pytest.mark.parametrize(
    ("preset", "where"),
    [("table9-6a", [(10, 20), (50, 60)]), ("table9-6b", [(10, 20), (33, 43), (66, 76)])],
)
def test_temporal_order(preset: str, where: list[tuple[int, int]]) -> None:
    seen, classes = [], set()
    for units, _, out, r in sequences_of(PRESETS[preset], 2000):
        u = units[:, 0]
        events = np.flatnonzero((u == 4) | (u == 5))
        assert u[0] == 6
        assert u[-1] == 7
        assert len(events) == len(where)
        assert 100 <= len(u) <= 110
        assert set(np.delete(u, [0, *events, len(u) - 1])) <= {0, 1, 2, 3}
        assert out.target[r][-1] == int("".join(str(v - 4) for v in u[events]), 2)
        seen.append(events + 1)
        classes.add(int(out.target[r][-1]))
    assert list(zip(np.min(seen, 0), np.max(seen, 0), strict=True)) == where
    assert len(classes) == 2 ** len(where)


# ---- trials


def test_a_sequence_is_a_function_of_its_number_and_seed_alone() -> None:
    cfg = PRESETS["table5-T100N3"]
    (a, _), (b, _) = (data.Source(*task_of(cfg), data.key_of(s, "data"), 50).read(0, 50) for s in (0, 1))
    c, _ = data.Source(*task_of(cfg), data.key_of(0, "data"), 7).read(20, 7)
    assert (a.value[a.start[20] : a.start[27]] == c.value[: c.start[7]]).all()
    assert not np.array_equal(a.value[:100], b.value[:100])


def tiny(**changes: object) -> Config:
    return replace(PRESETS["smoke"], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cfg",
    [
        tiny(),
        replace(PRESETS["table1-3x2-lr0.5"], max_sequences=400),
        replace(PRESETS["table2-lstm"], distractors=5, max_sequences=400),
        replace(PRESETS["table4-T100N3"], min_length=20, max_sequences=400),
        replace(PRESETS["gers-forget-decay"], max_sequences=400),
    ],
    ids=["6a", "reber", "2a", "3a", "gers"],
)
def test_rounds_and_resuming_change_no_bit(cfg: Config) -> None:
    whole, parts = Trial(cfg, 5), Trial(cfg, 5)
    whole.advance(400)
    for n in (1, 7, 92, 150):
        parts.advance(n)
    resumed = Trial(cfg, 5)
    for name, value in parts.state.items():
        resumed.state[name][...] = value
    resumed.advance(150)
    assert whole.done == resumed.done
    for name, value in whole.state.items():
        np.testing.assert_array_equal(value, resumed.state[name], err_msg=name)


def test_stopping_rule_counts_the_window() -> None:
    """With everything called right, a trial stops when the window is full for the first time."""
    trial = Trial(tiny(tolerance=2.0, window_error=1.0), 0)
    trial.advance(400)
    assert trial.metrics()["sequences"] == 100
    assert trial.metrics()["solved"] == 100
    trial = Trial(tiny(tolerance=2.0, window_error=0.0), 0)
    trial.advance(400)
    assert trial.metrics()["sequences"] == 400
    assert trial.metrics()["solved"] == 0


def test_short_lag_task_is_learned() -> None:
    trial = Trial(replace(PRESETS["table2-lstm"], distractors=10, max_sequences=20_000), 0)
    trial.advance(20_000)
    assert trial.metrics()["solved"] == 100


def test_initial_weights_are_the_paper_s() -> None:
    net = start(PRESETS["table4-T100N3"], 0)
    bias = net.arrays()[0][-1]
    assert bias[3:].tolist() == [-1, -3, -5, -2, -4, -6]
    assert np.abs(net.arrays()[0][:-1]).max() < 0.1
    gers = start(PRESETS["gers-forget"], 0).arrays()[0][-1]
    assert gers[8:].tolist() == [-0.5, -1, -1.5, -2, -0.5, -1, -1.5, -2, 0.5, 1, 1.5, 2]
    assert (gers[:8] == 0).all()
    assert build(PRESETS["table9-6a"], 3).w_hidden.shape == (3, 16, 8)


def test_what_cannot_be_is_refused() -> None:
    for changes in ({"gradient": "full", "update": "step"}, {"input_gate_bias": (1.0,)}, {"dataset": "generated/6c"}):
        with pytest.raises(UserError):
            Trial(tiny(**changes), 0)


def test_generators_are_the_declared_ones() -> None:
    declared = {d.name: d.fingerprint for d in load("lstm").data}
    assert declared == {f"generated/{name}": data.fingerprint(name) for name in data.NAMES}


def test_log_stays_short() -> None:
    assert sum(map(worth_logging, range(5000))) < 100
