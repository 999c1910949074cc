"""The grouped layer against dense loops, transformers and the papers' formulas; experts over two processes; counts."""

import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from common.claims import load
from common.cli import launch
from common.errors import UserError
from common.random import generator
from papers.moe import data, timing
from papers.moe.audit import audit, build, build_makemoe, build_moe, cv
from papers.moe.config import PRESETS
from papers.moe.makemoe import Block
from papers.moe.model import ByExperts, Experts, LanguageModel, Link, MoE, sampled_cross_entropy
from papers.moe.routing import Batchwise, Draws, Gate, Hierarchical, NoisyTopK, Switch, cv_squared, top_k

T, D, H, N, K = 96, 16, 24, 16, 4


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator("test", key, *shape))


def layer(gate: Gate) -> MoE:
    """A layer whose parameters are all random, gates included."""
    moe = MoE(gate, Experts(N, (D, H, D)))
    for i, weight in enumerate(moe.parameters()):
        weight.data, weight.grad = normal(*weight.shape, key=f"weight {i}") / 4, None
    if isinstance(gate, Batchwise):
        gate.threshold.data.fill_(1.2 / N)
    return moe


GATES: dict[str, Gate] = {
    "noisy": NoisyTopK(D, N, K),
    "all": NoisyTopK(D, N, N),
    "hierarchical": Hierarchical(D, N, 4, 2),
    "batchwise": Batchwise(D, N, K),
    "switch": Switch(D, N, capacity_factor=1.0, exploration="argmax"),
}


def keep_top_k(h: Tensor, k: int) -> Tensor:
    """Softmax(KeepTopK(H, k)) as Eq. 3 and 5 have it, dense."""
    return h.masked_fill(h < h.topk(k, dim=-1).values[..., -1:], -torch.inf).softmax(-1)


def probability(clean: Tensor, sd: Tensor, noisy: Tensor, k: int) -> Tensor:
    """P(x, i) of Eq. 9, entry by entry."""
    p = torch.empty_like(clean)
    for x in range(len(clean)):
        for i in range(clean.shape[1]):
            others = torch.cat([noisy[x, :i], noisy[x, i + 1 :]])
            p[x, i] = torch.distributions.Normal(0.0, 1.0).cdf((clean[x, i] - others.sort().values[-k]) / sd[x, i])
    return p


def dense(gate: Gate, x: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
    """G(x) as a dense matrix and Load(X), from the papers' formulas."""
    if isinstance(gate, NoisyTopK):
        clean, sd = x @ gate.w_gate, F.softplus(x @ gate.w_noise)
        h = clean if draws is None else clean + sd * draws.normal(len(x), N)
        g = keep_top_k(h, gate.k)
        smooth = draws is not None and gate.k < N
        return g, (probability(clean, sd, h, gate.k) if smooth else (g > 0).to(x.dtype)).sum(0)
    if isinstance(gate, Hierarchical):
        a, b, first = gate.groups, gate.size, gate.primary
        clean, sd = x @ first.w_gate, F.softplus(x @ first.w_noise)
        h = clean if draws is None else clean + sd * draws.normal(len(x), a)
        outer = keep_top_k(h, gate.k)
        p_outer = (outer > 0).to(x.dtype) if draws is None else probability(clean, sd, h, gate.k)
        noise = None if draws is None else draws.normal(len(x), gate.k * b).view(len(x), gate.k, b)
        slot = h.topk(gate.k).indices
        g, load = x.new_zeros(len(x), N), []
        for i in range(a):
            inside = (outer[:, i] > 0).nonzero()[:, 0]
            clean, sd = x[inside] @ gate.w_gate[i], F.softplus(x[inside] @ gate.w_noise[i])
            h = clean
            if noise is not None:
                h = clean + sd * noise[inside, (slot[inside] == i).int().argmax(1)]
            inner = keep_top_k(h, gate.k)
            p = (inner > 0).to(x.dtype) if draws is None else probability(clean, sd, h, gate.k)
            load.append(p_outer[:, i].sum() * p.sum(0) / len(inside))
            g = g.index_put((inside[:, None], torch.arange(i * b, (i + 1) * b)), outer[inside, i, None] * inner)
        return g, torch.cat(load)
    assert isinstance(gate, Batchwise | Switch)
    score = (x @ gate.w_gate).softmax(1)
    mask = torch.zeros_like(score)
    if isinstance(gate, Batchwise):
        mask = (score > gate.threshold).to(x.dtype)
        if draws is not None:
            mask = torch.stack([(c >= c.sort().values[-(K * len(x) // N)]).to(x.dtype) for c in score.T], 1)
        return (score * mask) / (score * mask).sum(1, keepdim=True).clamp(1e-30), mask.sum(0)
    taken, chosen = [0] * N, score.argmax(1).tolist()
    for x_, i in enumerate(chosen):  # first come, first served
        if taken[i] < math.ceil(len(x) / N):
            taken[i], mask[x_, i] = taken[i] + 1, 1.0
    return score * mask, F.one_hot(torch.tensor(chosen), N).to(x.dtype).sum(0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", GATES)
def test_the_layer_is_the_dense_loop_with_masks(name: str, training: bool) -> None:
    moe, x = layer(GATES[name]), normal(T, D).requires_grad_()
    draws = (Draws("draws"), Draws("draws")) if training else (None, None)
    assert moe.gate is not None
    g, load = dense(moe.gate, x, draws[0])
    first, second = moe.experts.weights
    expected = torch.stack([g[:, e, None] * ((x @ first[e]).relu() @ second[e]) for e in range(N)]).sum(0)
    y, routing = moe(x, draws[1])
    assert routing is not None
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(routing.importance, g.sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(routing.load, load, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(timing.Loop(moe)(x, Draws("draws") if training else None), y, rtol=1e-5, atol=1e-6)
    weights, pull = [x, *moe.parameters()], normal(T, D, key="pull")

    def gradients(y: Tensor, importance: Tensor, load: Tensor) -> tuple[Tensor, ...]:
        loss = (y * pull).sum() + cv_squared(importance) + (cv_squared(load) if load.requires_grad else 0)
        return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)

    ours = gradients(y, routing.importance, routing.load)
    for mine, theirs in zip(ours, gradients(expected, g.sum(0), load), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert ours[0].abs().max() > 0


def test_experts_of_any_depth_and_none_that_is_idle() -> None:
    experts, x = Experts(4, (8, 16, 16, 8)), normal(10, 8)
    experts.initialise(generator("test"))
    count, y = torch.tensor([3, 0, 7, 0]), torch.empty(10, 8)
    for e, rows in ((0, slice(0, 3)), (2, slice(3, 10))):
        a, b, c = (weight[e] for weight in experts.weights)
        y[rows] = ((x[rows] @ a).relu() @ b).relu() @ c
    torch.testing.assert_close(experts(x, count), y)


def test_expert_by_expert_is_the_grouped_product() -> None:
    """The layer's way on a CPU, and its way elsewhere; two experts are idle."""
    experts, count = Experts(4, (8, 16, 8)), torch.tensor([3, 0, 7, 0])
    experts.initialise(generator("test"))
    x, gate, token = normal(5, 8).requires_grad_(), normal(10, key="gate").requires_grad_(), torch.arange(10) % 5
    weights = [x, gate, *experts.weights]
    one = ByExperts.apply(*weights, token, count)
    other = torch.zeros(5, 8).index_add(0, token, experts(x[token], count) * gate[:, None])
    torch.testing.assert_close(one, other)
    pull = normal(5, 8, key="pull")
    for mine, theirs in zip(*(torch.autograd.grad((y * pull).sum(), weights) for y in (one, other)), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert theirs.any()


def test_transformers_agree() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    from transformers import MixtralConfig, SwitchTransformersConfig

    moe, x, gate = layer(GATES["switch"]), normal(T, D), GATES["switch"]
    assert isinstance(gate, Switch)
    config = SwitchTransformersConfig(
        d_model=D, d_ff=H, num_experts=N, expert_capacity=T // N, router_jitter_noise=0.0, dropout_rate=0.0
    )
    theirs = switch.SwitchTransformersSparseMLP(config)
    with torch.no_grad():
        theirs.router.classifier.weight.copy_(gate.w_gate.T)
        for e in range(N):
            theirs.experts[f"expert_{e}"].wi.weight.copy_(moe.experts.weights[0][e].T)
            theirs.experts[f"expert_{e}"].wo.weight.copy_(moe.experts.weights[1][e].T)
        y, routing = moe(x)
        torch.testing.assert_close(y, theirs(x[None])[0], rtol=1e-5, atol=1e-6)
        assert (y == 0).all(1).any()  # some tokens overflow
        assert routing is not None
        expected = 0.01 * mixtral.load_balancing_loss_func((x @ gate.w_gate,), N, 1)
        torch.testing.assert_close(routing.penalty, expected)
        router = mixtral.MixtralTopKRouter(MixtralConfig(hidden_size=D, num_local_experts=N, num_experts_per_tok=K))
        router.weight.copy_(normal(N, D, key="router"))
        _, kept, expert = router(x)
        chosen, ours, _ = top_k(x @ router.weight.T, torch.ones(T, N), None, K)
        torch.testing.assert_close(ours, kept)
        assert torch.equal(chosen, expert)


# ---- what the papers promise


def test_counts_are_as_printed_but_for_four() -> None:
    found = audit(None)[0]
    claims = [claim for claim in load("moe").claim if claim.kind == "count"]
    off = {}
    for claim in claims:
        assert claim.value is not None
        difference = found[claim.metric] - float(claim.value)
        if abs(difference) > 0.5 * 10.0 ** int(Decimal(claim.value).as_tuple().exponent) * (1 + 1e-9):
            off[claim.id] = round(difference, 2)
    assert off == {
        "moe/table7/ops/moe-256": 0.05,
        "moe/table1/params/medium": 0.88,
        "moe/switch/table9/params/switch-large": 1.15,
        "moe/switch/table9/params/switch-xxl": -193.6,
    }
    assert found["load_estimator_largest_gap"] < 0.02
    assert found["load_cv_at_start"] < 0.01
    at_equal_operations = [found[f"million_ops/laptop-{name}"] for name in ("moe-4", "moe-16", "moe-64", "4xlstm")]
    assert max(at_equal_operations) / min(at_equal_operations) < 1.07


def test_the_balance_losses_even_out_a_lopsided_gate() -> None:
    x = normal(512, D) + 1  # a common mean favours the same experts for all tokens
    for w_importance, w_load, metric in ((1.0, 0.0, "importance"), (0.0, 1.0, "load")):
        gate = NoisyTopK(D, N, K)
        for weight in gate.parameters():
            weight.data = normal(*weight.shape, key="lopsided") / 4
        adam, seen = torch.optim.Adam(gate.parameters(), lr=0.01), []
        for step in range(60):
            routing = gate(x, Draws("balance", step))
            seen.append(cv(getattr(routing, metric).detach()))
            adam.zero_grad()
            (w_importance * cv_squared(routing.importance) + w_load * cv_squared(routing.load)).backward()
            adam.step()
        assert seen[0] > 0.6
        assert seen[-1] < 0.2


def test_cv_is_the_populations() -> None:
    assert cv_squared(torch.tensor([1.0, 3.0])).item() == pytest.approx(0.25)
    assert cv_squared(torch.full((5,), 2.0)).item() == 0


def test_thresholds_learn_the_batchwise_mask() -> None:
    gate, x = Batchwise(D, N, K), normal(T, D)
    gate.initialise(generator("test"))
    adam = torch.optim.Adam([gate.threshold], lr=3e-3)
    before = gate(x, None).taken
    for _ in range(300):
        routing = gate(x, Draws("strict"))
        adam.zero_grad()
        routing.penalty.backward()
        adam.step()
    assert routing.taken.tolist() == [K * T // N] * N
    after = gate(x, None).taken
    assert (after - K * T // N).abs().max() <= 2 < (before - K * T // N).abs().max()


@pytest.mark.parametrize("exploration", ["argmax", "sample", "dropout", "jitter"])
def test_switch_explores_in_training_alone(exploration: Any) -> None:
    gate, x = Switch(D, 4, capacity_factor=4.0, exploration=exploration), normal(2000, D)
    gate.initialise(generator("test"))
    p = (x @ gate.w_gate).softmax(1)
    assert torch.equal(gate(x, None).taken, torch.bincount(p.argmax(1), minlength=4))
    routing = gate(x, Draws("explore"))
    moved = (gate(x, None).load - routing.load).abs().sum() / 2000
    assert (moved == 0) == (exploration == "argmax")
    if exploration == "sample":
        torch.testing.assert_close(routing.load / 2000, p.mean(0), rtol=0.1, atol=0)
    assert gate.w_gate.std().item() == pytest.approx(math.sqrt(0.1 / D) * 0.88, rel=0.15)  # 0.88: cut at 2 sd


def test_sampled_softmax_estimates_the_whole_one() -> None:
    h, weight, bias = normal(6, 8), normal(50, 8, key="w"), normal(50, key="b")
    target = torch.tensor([0, 1, 5, 20, 49, 3])
    uniform = torch.rand(400_000, generator=generator("test"))
    found = sampled_cross_entropy(h, weight, bias, target, uniform)
    torch.testing.assert_close(
        found, F.cross_entropy(h @ weight.T + bias, target, reduction="none"), rtol=0.02, atol=0.02
    )


# ---- the model


def test_the_model_is_five_layers_with_residuals() -> None:
    cfg = replace(PRESETS["laptop"], width=16, lstm_units=16, expert_units=(16,), experts=8)
    model = build(cfg, 11)
    model.initialise(generator("test"))
    first, moe, second = model.layers
    words, following = torch.randint(11, (2, 3, 7), generator=generator("test"))
    h = model.embedding(words)
    h = h + first(h)[0]
    h = h + moe(h.flatten(0, 1))[0].sigmoid().view_as(h)
    h = h + second(h)[0]
    expected = F.cross_entropy(model.softmax(h).transpose(1, 2), following, reduction="none")
    torch.testing.assert_close(model(words, following)[0], expected)
    a, b = (model(words, following, Draws("dropout", i))[0] for i in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, model(words, following, Draws("dropout", 0))[0])
    kinds = [type(layer) for layer in build(replace(cfg, middle="lstm"), 11).layers]
    assert kinds == [nn.LSTM] * 4
    projected = build(replace(cfg, middle="none", lstm_units=32), 11)
    projected.initialise(generator("test"))
    assert projected.hidden(words)[0].shape == (3, 7, 16)
    assert not projected.layers[0].bias_hh_l0.requires_grad


def test_mixed_precision_keeps_the_gate_in_float32() -> None:
    moe, x = layer(GATES["noisy"]), normal(T, D)
    y, routing = moe(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, same = moe(x)
    assert torch.equal(routing.gate, same.gate)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), y, rtol=0.05, atol=0.05)


def test_draws_of_a_part_are_rows_of_the_whole() -> None:
    whole = Draws("key")
    parts = [Draws("key", part=(rank, 2)) for rank in range(2)]
    for shape in ((6, 3), (4,)):
        for kind in ("normal", "uniform"):
            rows = [getattr(part, kind)(shape[0] // 2, *shape[1:]) for part in parts]
            assert torch.equal(getattr(whole, kind)(*shape), torch.cat(rows))


def step_of(gate: Gate, x: Tensor, held: int | None, link: Link | None, part: tuple[int, int]) -> list[Tensor]:
    """Output and gradients of one training step: y, dx, the gate's, the experts'."""
    moe = layer(gate)
    if held:
        moe.experts.weights = nn.ParameterList(
            nn.Parameter(w.data.chunk(N // held)[part[0]].clone()) for w in moe.experts.weights
        )
    moe.join(link)
    x = x.chunk(part[1])[part[0]].clone().requires_grad_()
    y, routing = moe(x, Draws("step", part=part))
    assert routing is not None
    loss = y.square().sum(1).mean() + cv_squared(routing.importance) + cv_squared(routing.load) + routing.penalty
    loss.backward()
    moe.join(None)
    return [y.detach(), x.grad, *(w.grad for w in moe.parameters())]


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    link, x = Link(), normal(T, D)
    for name in ("noisy", "hierarchical"):
        for held in (None, N // 2):
            torch.save(step_of(GATES[name], x, held, link, (rank, 2)), f"{folder}/{name}-{held}-{rank}.pt")
    dist.barrier()


def test_experts_over_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    for name in ("noisy", "hierarchical"):
        whole = step_of(GATES[name], normal(T, D), None, None, (0, 1))
        gates = len(list(GATES[name].parameters()))
        for held in (None, N // 2):
            one, two = (torch.load(tmp_path / f"{name}-{held}-{rank}.pt") for rank in range(2))
            y, dx, *weights = zip(one, two, strict=True)
            found = [torch.cat(y), torch.cat(dx) / 2]  # each loss is that of its own tokens, times two
            found += [(a + b) / 2 for a, b in weights[:gates]]  # averaged, as by DistributedDataParallel
            found += [(torch.cat([a, b]) if held else a + b) / 2 for a, b in weights[gates:]]
            for mine, theirs in zip(found, whole, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# ---- data, mistakes, times


def test_words_are_numbered_by_frequency(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    home = tmp_path / "hub" / "some" / "words"
    home.mkdir(parents=True)
    for split, rows in (("train", ["b a b\n", "", "b c <unk>"]), ("test", ["a d"])):
        datasets.Dataset.from_dict({"text": rows}).to_parquet(home / f"{split}-00000-of-00001.parquet")
    corpus = data.words("some/words", tmp_path, 1)
    assert corpus.train.tolist() == [2, 3, 2, 1, 1, 2, 4, 0, 1]
    assert corpus.test.tolist() == [3, 0, 1]
    assert data.words("some/words", tmp_path, 2).vocabulary == 3
    whole = data.characters("synthetic/text", None)
    assert len(whole.test) == pytest.approx(0.1 * (len(whole.train) + len(whole.test)), abs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 60}, "multiples of 8"),
        ({"experts": 2}, "no more can be active"),
        ({"groups": 7, "active": 2}, "groups must divide"),
        ({"groups": 8, "active": 2, "gating": "switch"}, "groups need gating"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_moe(replace(PRESETS["laptop"], **change))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "gauss-both.1", "--steps", "20", "--experts", "16", "--batch-size", "128"],
        ["--preset", "timing", "--timed-experts", "4", "8", "--batch-size", "256", "--width", "16", "--steps", "1"],
        ["--preset", "smoke", "--groups", "0", "--active", "4", "--gating", "batchwise"],
        ["--preset", "smoke", "--groups", "0", "--active", "1", "--gating", "switch", "--softmax-samples", "8"],
        ["--preset", "smoke", "--middle", "lstm"],
        ["--preset", "makemoe", "--dataset", "synthetic/text", "--steps", "2", "--layers", "1"],
    ],
)
def test_every_experiment_and_gate_runs(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("moe", [*arguments, "--device", "cpu", "--output-dir", str(tmp_path / "run")])
    assert stop.value.code == 0
    from common.records import read

    (record,) = (read(path) for path in (tmp_path / "run").glob("records/*.json"))
    assert record.status == "finished"
    if record.preset == "timing":
        assert {"slope/ours", "us_per_token/loop/8"} <= record.metrics.keys()
    elif record.config["gating"] == "batchwise":
        assert record.metrics["max_over_mean_count"] == 1
    assert all(math.isfinite(value) for value in record.metrics.values() if value is not None)


def test_makemoe_is_the_loop_over_experts_with_masks() -> None:
    """Attention head by head, experts one by one, the gate's noise in the evaluation too."""
    small = replace(PRESETS["makemoe"], width=16, heads=2, layers=2, experts=4, expert_units=(32,), length=8)
    model = build_makemoe(small, 11)
    model.initialise(generator("makemoe"))
    model.eval()
    words, following = torch.randint(11, (2, 3, 8), generator=generator("words"))
    x, draws = model.embedding(words) + model.places.weight, Draws("eval")
    for layer in model.layers:
        assert isinstance(layer, Block)
        h, heads = layer.norm1(x), []
        for i in (0, 1):
            q, k, v = (part[..., 8 * i : 8 * i + 8] for part in layer.attention.qkv(h).chunk(3, -1))
            scores = q @ k.mT / 4  # the root of the width, 16
            heads.append(scores.masked_fill(torch.ones(8, 8).tril() == 0, -torch.inf).softmax(-1) @ v)
        x = x + layer.attention.proj(torch.cat(heads, -1))
        h, gate, experts = layer.norm2(x).flatten(0, 1), layer.moe.gate, layer.moe.experts
        assert isinstance(gate, NoisyTopK)
        assert gate.b_gate is not None
        assert gate.b_noise is not None
        noisy = h @ gate.w_gate + gate.b_gate
        noisy = noisy + draws.normal(len(h), 4) * F.softplus(h @ gate.w_noise + gate.b_noise)
        kept = noisy >= noisy.topk(2).values[:, 1:]
        weight = noisy.masked_fill(~kept, -torch.inf).softmax(-1)
        y = torch.zeros_like(h)
        for e in range(4):
            (w1, w2), (b1, b2) = ([p[e] for p in params] for params in (experts.weights, experts.biases))
            y = y + weight[:, e : e + 1] * ((h @ w1 + b1).relu() @ w2 + b2)
        x = x + y.view_as(x)
    expected = F.cross_entropy(model.softmax(model.norm(x)).mT, following, reduction="none")
    torch.testing.assert_close(model(words, following, Draws("eval")), expected, rtol=1e-4, atol=1e-5)
    model.train()
    a, b, again = (model(words, following, Draws("dropout", i)) for i in (0, 1, 0))
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


def test_training_learns_the_text(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        launch("moe", ["--preset", "smoke", "--steps", "120", "--lr", "0.02", "--output-dir", str(tmp_path / "run")])
    from common.records import read

    (record,) = (read(path) for path in (tmp_path / "run").glob("records/*.json"))
    ids = data.characters("synthetic/text", None).train
    share = torch.bincount(ids) / len(ids)
    by_frequency_alone = math.exp(-(share * share.clamp(1e-9).log()).sum())
    found = record.metrics["perplexity_per_character"]
    assert found is not None
    assert found < 0.5 * by_frequency_alone
    assert isinstance(build(PRESETS["smoke"], 5), LanguageModel)
