"""Identity of the Transformer: counts, two reference libraries, attention by hand, decoding against enumeration."""

import itertools
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.claims import load
from common.cli import launch
from common.data.text import Subwords
from common.records import Record, read
from papers.transformer import analysis, data
from papers.transformer.audit import audit
from papers.transformer.config import PRESETS
from papers.transformer.model import PAD, Attention, Transformer, sinusoids
from papers.transformer.search import RULES, Decoding, Rule, beam_search, translate
from papers.transformer.train import Snapshots, schedule, summed_loss, whole_text

BOS, EOS = data.BOS, data.EOS


def net(seed: int = 0, **changes: Any) -> Transformer:
    """A small model in double precision, all of whose weights do something."""
    sizes: dict[str, Any] = {
        "vocabulary": 11,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "d": 16,
        "heads": 4,
        "length": 40,
    }
    made = Transformer(**(sizes | {"d_k": 4, "d_v": 4, "d_ff": 24} | changes)).double()
    numbers = torch.Generator().manual_seed(seed)
    made.initialise(numbers)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=numbers, dtype=p.dtype), alpha=0.1)
    return made.eval()


def sentences(*lengths: int, seed: int = 1, vocabulary: int = 11) -> Tensor:
    """(b, longest), padded."""
    numbers = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, vocabulary, (n,), generator=numbers) for n in lengths]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def run(folder: Path, *arguments: str) -> Record:
    with pytest.raises(SystemExit) as stop:
        launch("transformer", ["--device", "cpu", "--output-dir", str(folder), *arguments])
    assert stop.value.code == 0
    return read(next(folder.glob("records/*.json")))


# ---- counts


def test_every_printed_count_that_needs_no_data() -> None:
    counts = audit(None)[0]
    claims = [c for c in load("transformer").claim if c.kind == "count" and c.metric in counts]
    assert len(claims) >= 43
    for claim in claims:
        assert claim.value is not None
        half_unit = 0.5 * 10.0 ** int(Decimal(claim.value).as_tuple().exponent)
        assert abs(counts[claim.metric] - float(claim.value)) <= half_unit * (1 + 1e-9), claim.id
    assert {counts[f"parameters/h{h}"] for h in (1, 4, 16, 32)} == {counts["parameters/base"]}
    # Trap: with the text's 37,000 tokens no row of the base family but two comes out as printed
    assert round(counts["millions/base-37k"]) == 63
    assert counts["parameters/shakespeare-gpu"] - 256 * 384 == 10_646_784  # nanoGPT prints 10.65M, without positions


def test_multi30k_is_the_data_set_the_scores_were_published_for(papers_data: Path) -> None:
    counts, fingerprints = audit(papers_data)
    assert counts["multi30k_reference_words"] == 12_103
    declared = {d.name: d.fingerprint for d in load("transformer").data}
    assert fingerprints == {name: declared[name] for name in ("bentrevett/multi30k", "local/multi30k-2017")}
    assert data.characters("karpathy/tiny_shakespeare", papers_data)[3] == declared["karpathy/tiny_shakespeare"]
    assert data.read("bentrevett/multi30k", ("de", "en"), papers_data)[1] == fingerprints


# ---- reference libraries


def copy_attention(theirs: Any, ours: Attention) -> None:
    """Into torch.nn.MultiheadAttention (packed q, k, v) or Marian's four projections."""
    weights: Tensor
    biases: Tensor
    if hasattr(ours, "qkv"):
        weights, biases = ours.qkv.weight, ours.qkv.bias
    else:
        weights, biases = torch.cat([ours.q.weight, ours.kv.weight]), torch.cat([ours.q.bias, ours.kv.bias])
    if isinstance(theirs, nn.MultiheadAttention):
        theirs.in_proj_weight.copy_(weights)
        theirs.in_proj_bias.copy_(biases)
    else:
        for module, w, b in zip(
            (theirs.q_proj, theirs.k_proj, theirs.v_proj), weights.chunk(3), biases.chunk(3), strict=True
        ):
            module.weight.copy_(w)
            module.bias.copy_(b)
    theirs.out_proj.load_state_dict(ours.out.state_dict())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_are_torchs(pre_norm: bool) -> None:
    model = net(dialect="fairseq")
    for layer in (*model.encoder, *model.decoder):
        layer.dialect = layer.dialect._replace(pre_norm=pre_norm)
    options: dict[str, Any] = {
        "dropout": 0.0, "batch_first": True, "norm_first": pre_norm, "layer_norm_eps": 1e-5, "dtype": torch.float64,
    }  # fmt: skip
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, **options), 2, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, **options), 3)
    theirs = nn.Transformer(16, 4, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
    with torch.no_grad():
        for mine, other in [
            *zip(model.encoder, encoder.layers, strict=True),
            *zip(model.decoder, decoder.layers, strict=True),
        ]:
            assert isinstance(other, nn.Module)
            copy_attention(other.self_attn, mine.self_attention)  # type: ignore[arg-type]
            if hasattr(other, "multihead_attn"):
                copy_attention(other.multihead_attn, mine.cross_attention)  # type: ignore[arg-type]
            other.linear1.load_state_dict(mine.ff1.state_dict())  # type: ignore[union-attr]
            other.linear2.load_state_dict(mine.ff2.state_dict())  # type: ignore[union-attr]
            for i, norm in enumerate(mine.norms):  # type: ignore[arg-type]
                getattr(other, f"norm{i + 1}").load_state_dict(norm.state_dict())
    source, target = sentences(7, 3, 5), sentences(6, 6, 2, seed=2)
    padding = source == PAD
    x, y = model.embedded(source, "source"), model.embedded(target, "target")
    expected = theirs(
        x, y, tgt_mask=nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64), tgt_is_causal=True,
        src_key_padding_mask=padding, memory_key_padding_mask=padding,
    )  # fmt: skip
    found = model(source, target)
    torch.testing.assert_close(found, F.linear(expected, model.embedding.weight), rtol=1e-9, atol=1e-9)
    heads = []
    for value in (found, F.linear(expected, model.embedding.weight)):
        model.zero_grad()
        value[target != PAD].square().sum().backward(retain_graph=True)
        assert model.embedding.weight.grad is not None
        heads.append(model.embedding.weight.grad.clone())
    torch.testing.assert_close(*heads)


def test_the_whole_model_is_marians() -> None:
    from transformers import MarianConfig, MarianMTModel

    model = net(dialect="fairseq", encoder_layers=2, decoder_layers=2)
    config: Any = MarianConfig(
        vocab_size=11, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, activation_function="relu",
        max_position_embeddings=40, scale_embedding=True, dropout=0.0, pad_token_id=PAD, eos_token_id=EOS,
        decoder_start_token_id=EOS, forced_eos_token_id=None, 
    )  # fmt: skip
    theirs = MarianMTModel(config).double().eval()
    model.places = torch.cat([sinusoids(40, 16)[:, 0::2], sinusoids(40, 16)[:, 1::2]], 1)  # ours, sines first
    with torch.no_grad():
        theirs.model.shared.weight.copy_(model.embedding.weight)
        theirs.lm_head.weight.copy_(model.embedding.weight)
        theirs.final_logits_bias.zero_()
        for side, layers in (("encoder", model.encoder), ("decoder", model.decoder)):
            other_side: Any = getattr(theirs.model, side)
            other_side.embed_positions.weight.copy_(model.places)
            for mine, other in zip(layers, other_side.layers, strict=True):
                copy_attention(other.self_attn, mine.self_attention)  # type: ignore[arg-type]
                names = ["self_attn_layer_norm", "final_layer_norm"]
                if side == "decoder":
                    copy_attention(other.encoder_attn, mine.cross_attention)  # type: ignore[arg-type]
                    names.insert(1, "encoder_attn_layer_norm")
                other.fc1.load_state_dict(mine.ff1.state_dict())  # type: ignore[union-attr]
                other.fc2.load_state_dict(mine.ff2.state_dict())  # type: ignore[union-attr]
                for name, norm in zip(names, mine.norms, strict=True):  # type: ignore[arg-type]
                    getattr(other, name).load_state_dict(norm.state_dict())
        source, target = sentences(7, 3, 5), sentences(6, 6, 6, seed=2)
        expected = theirs(
            input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=target
        ).logits  # fmt: skip
        torch.testing.assert_close(model(source, target), expected, rtol=1e-9, atol=1e-9)


def test_the_decoder_alone_is_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = net(dialect="nanogpt", encoder_layers=0, positions="learned")
    config = GPT2Config(
        vocab_size=11, n_positions=40, n_embd=16, n_layer=3, n_head=4, n_inner=24, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith("bias"):  # nanoGPT has none
                p.zero_()
        theirs.transformer.wte.weight.copy_(model.embedding.weight)
        theirs.transformer.wpe.weight.copy_(model.tables["target"])
        theirs.transformer.ln_f.weight.copy_(model.ends[0].weight)
        for mine, other in zip(model.decoder_layers, theirs.transformer.h, strict=True):
            for conv, linear in (
                (other.attn.c_attn, mine.self_attention.qkv), (other.attn.c_proj, mine.self_attention.out),
                (other.mlp.c_fc, mine.ff1), (other.mlp.c_proj, mine.ff2),
            ):  # fmt: skip
                conv.weight.copy_(linear.weight.T)
            other.ln_1.weight.copy_(mine.norms[0].weight)
            other.ln_2.weight.copy_(mine.norms[1].weight)
        text = sentences(9, 9, seed=3)
        torch.testing.assert_close(model(None, text), theirs(text).logits, rtol=1e-9, atol=1e-9)


# ---- Section 3


@pytest.mark.parametrize(("d_k", "d_v"), [(4, 4), (3, 5), (16, 2)])
def test_attention_by_hand_with_free_sizes(d_k: int, d_v: int) -> None:
    d, heads = 8, 2
    own, cross = (Attention(d, heads, d_k, d_v, True, 0.0, cross=c).double() for c in (False, True))
    x, memory = (torch.randn(2, n, d, dtype=torch.float64) for n in (5, 7))
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    for module, seen in ((own, x), (cross, memory)):
        w, b = (
            (module.qkv.weight, module.qkv.bias) if module is own
            else (torch.cat([module.q.weight, module.kv.weight]), torch.cat([module.q.bias, module.kv.bias]))
        )  # fmt: skip
        q = F.linear(x, w[: heads * d_k], b[: heads * d_k])
        k, v = F.linear(seen, w[heads * d_k :], b[heads * d_k :]).split([heads * d_k, heads * d_v], -1)
        rows = []
        for i in range(2):
            parts = []
            for h in range(heads):
                keys = slice(h * d_k, (h + 1) * d_k)
                logits = q[i, :, keys] @ k[i, :, keys].T / math.sqrt(d_k)
                if module is cross:
                    logits[:, ~mask[i, 0, 0]] = -math.inf
                parts.append(logits.softmax(-1) @ v[i, :, h * d_v : (h + 1) * d_v])
            rows.append(module.out(torch.cat(parts, -1)))
        found = own(x) if module is own else cross(x, cross.keys(memory), mask)
        torch.testing.assert_close(found, torch.stack(rows))
    a = cross.weights(x, cross.keys(memory), mask)
    torch.testing.assert_close(a.sum(-1), torch.ones(2, heads, 5, dtype=torch.float64))
    assert (a[1, ..., 4:] == 0).all()


@pytest.mark.parametrize("dialect", ["paper", "fairseq", "bentrevett"])
def test_nothing_sees_padding_or_the_future(dialect: str) -> None:
    own: dict[str, Any] = {"source_vocabulary": 11, "positions": "learned"} if dialect == "bentrevett" else {}
    model = net(dialect=dialect, **own)
    source, target = sentences(7, 4), sentences(6, 6, seed=2)
    together = model(source, target)
    torch.testing.assert_close(together[1:], model(source[1:, :4], target[1:]))
    changed = target.clone()
    changed[:, 4:] = 5
    torch.testing.assert_close(model(source, changed)[:, :4], together[:, :4])
    assert not torch.allclose(model(source, changed)[:, 4:], together[:, 4:])


def test_positions() -> None:
    pe = sinusoids(200, 32)
    assert pe[7, 6] == pytest.approx(math.sin(7 / 10000 ** (6 / 32)))
    assert pe[7, 7] == pytest.approx(math.cos(7 / 10000 ** (6 / 32)))
    code = sinusoids(200, 32, halves=True, first=2)  # tensor2tensor's and fairseq's: sines first, d/2 - 1
    assert code[5, 3] == pytest.approx(math.sin(7 / 10000 ** (3 / 15)))
    assert code[5, 16 + 3] == pytest.approx(math.cos(7 / 10000 ** (3 / 15)))
    pe = sinusoids(7_000, 8)
    for k in (1, 9, 600):  # fitted on half of the positions, it holds on the others
        here, there = pe[:6_000], pe[k : 6_000 + k]
        fixed = torch.linalg.lstsq(here[:3_000], there[:3_000]).solution
        torch.testing.assert_close(here[3_000:] @ fixed, there[3_000:], rtol=0, atol=1e-6)


def test_paths_and_work_of_table_1() -> None:
    n, d, window = 33, 6, 5
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert [analysis.path("convolution", n, k) for k in (32, 33, 6, 2)] == [2, 1, 2, 6]
    assert [analysis.path("restricted", n, r) for r in (33, 32, 2)] == [1, 2, 32]
    assert analysis.path("recurrent", n) == 32
    for i in (0, 3, 20):  # each sees itself and the window - 1 before it
        near = x[max(0, i - window + 1) : i + 1]
        missing = window - len(near)  # zeros before the beginning weigh as much as any other key
        keys = torch.cat([torch.zeros(missing, d, dtype=x.dtype), near])
        expected = (keys @ x[i] / math.sqrt(d)).softmax(0) @ keys
        torch.testing.assert_close(analysis.restricted(x, window)[i], expected)
    large = [analysis.softmax_gradient(512, scaled, torch.Generator().manual_seed(0)) for scaled in (True, False)]
    small = [analysis.softmax_gradient(2, scaled, torch.Generator().manual_seed(0)) for scaled in (True, False)]
    assert large[0] > 1.5 * large[1]
    assert large[0] == pytest.approx(small[0], rel=0.2)  # with the scale the size of the keys does not matter


# ---- training


def test_schedules() -> None:
    base = PRESETS["table3-base"]
    noam = schedule(base, base.train_steps)
    assert max(range(20_000), key=noam) == 3_999
    assert noam(3_999) == pytest.approx(512**-0.5 * 4_000**-0.5)
    assert noam(0) == pytest.approx(512**-0.5 * 4_000**-1.5)
    tiny = schedule(PRESETS["multi30k-tiny"], 8_000)
    assert [0.005 * tiny(s) for s in (0, 1_000, 2_000, 8_000)] == pytest.approx([1e-7, 0.00250005, 0.005, 0.0025])
    gpt = schedule(PRESETS["shakespeare-cpu"], 2_000)
    assert [1e-3 * gpt(s) for s in (0, 99, 100, 1_050, 2_000)] == pytest.approx(
        [1e-3 / 101, 100e-3 / 101, 1e-3, 0.55e-3, 1e-4]
    )


def test_label_smoothing_is_a_divergence_from_a_mixture_and_padding_is_free() -> None:
    logits, target = torch.randn(2, 5, 7, dtype=torch.float64), torch.tensor([[3, 2, 6, 0, 0], [1, 4, 0, 0, 0]])
    real, log_p = target != PAD, logits.float().log_softmax(-1)
    mixture = 0.9 * F.one_hot(target, 7) + 0.1 / 7
    assert float(summed_loss(logits, target, 0.1)) == pytest.approx(
        -float((mixture * log_p).sum(-1)[real].sum()), rel=1e-5
    )
    assert float(summed_loss(logits, target, 0.0)) == pytest.approx(
        -float(log_p.gather(-1, target[..., None])[..., 0][real].sum()), rel=1e-5
    )


def test_snapshots_average_the_last() -> None:
    model, seen = net(), []
    snapshots = Snapshots(model.float(), 3, torch.device("cpu"))
    for i in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(i * i)
        snapshots.take(model)
        seen.append(i * i)
        snapshots.load_mean(model)
        assert float(next(model.parameters()).flatten()[0].detach()) == pytest.approx(sum(seen[-3:]) / len(seen[-3:]))


@pytest.mark.parametrize(
    ("dialect", "name", "sd"),
    [
        ("paper", "decoder.0.self_attention.qkv", math.sqrt(2 / (64 + 64))),  # each of q, k, v by itself
        ("paper", "embedding", 64**-0.5),
        ("fairseq", "encoder.1.self_attention.qkv", math.sqrt(1 / (64 + 64))),
        ("fairseq", "decoder.0.cross_attention.kv", math.sqrt(1 / (64 + 64))),
        ("fairseq", "decoder.0.ff1", math.sqrt(2 / (64 + 96))),
        ("nanogpt", "decoder.1.ff1", 0.02),
        ("nanogpt", "decoder.1.ff2", 0.02 / math.sqrt(2 * 3)),
        ("bentrevett", "embedding", math.sqrt(2 / (500 + 64))),
    ],
)
def test_initial_weights(dialect: str, name: str, sd: float) -> None:
    layers = 0 if dialect == "nanogpt" else 2
    model = Transformer(
        vocabulary=500, encoder_layers=layers, decoder_layers=3, d=64, heads=4, d_k=16, d_v=16, d_ff=96, length=40,
        positions="learned" if layers == 0 else "sinusoid", dialect=dialect,
    )  # fmt: skip
    model.initialise(torch.Generator().manual_seed(0))
    weights = model.get_parameter(f"{name}.weight").detach()
    for part in weights.split(64) if name.endswith(("qkv", "kv")) else (weights,):
        assert float(part.std()) == pytest.approx(sd, rel=0.06)
    assert all(torch.equal(p, torch.ones_like(p)) for n, p in model.named_parameters() if n.endswith("norms.0.weight"))


# ---- decoding


@pytest.mark.parametrize("dialect", ["paper", "fairseq"])
def test_cached_decoding_is_the_whole_model_read_anew(dialect: str) -> None:
    model, numbers = net(dialect=dialect), torch.Generator().manual_seed(5)
    source = sentences(7, 3, 5)
    with torch.no_grad():
        decoding = Decoding(model, source, 2)
        history = torch.full((3, 2, 1), BOS)
        rows = torch.arange(3)
        for step in range(6):
            found = decoding(history[..., -1])
            whole = model(source[rows].repeat_interleave(2, 0), history.flatten(0, 1))[:, -1].float().log_softmax(-1)
            torch.testing.assert_close(found.flatten(0, 1), whole)
            beams = torch.randint(2, (len(rows), 2), generator=numbers)
            kept = torch.arange(len(rows))[1:] if step == 2 else torch.arange(len(rows))  # a sentence is done
            decoding.go_on_with(kept, beams[kept])
            history = history[kept[:, None], beams[kept]]
            history = torch.cat([history, torch.randint(4, 11, (*history.shape[:2], 1), generator=numbers)], -1)
            rows = rows[kept]


def enumerated(model: Transformer, source: Tensor, alpha: float, rule: Rule) -> tuple[list[int], float]:
    """The best of all sequences there are, each read by the whole model at once."""
    words, limit = [t for t in range(model.embedding.num_embeddings) if t not in (PAD, EOS)], rule.extra
    best, said = -math.inf, [0]
    for n in range(rule.least, limit + 1):
        every = torch.tensor(list(itertools.product(words, repeat=n)), dtype=torch.long).view(len(words) ** n, n)
        target = F.pad(every, (1, 1), value=EOS)
        target[:, 0] = BOS
        with torch.no_grad():
            log_p = model(source.expand(len(every), -1), target[:, :-1]).float().log_softmax(-1)
        score = log_p.gather(-1, target[:, 1:, None])[..., 0].sum(1) / rule.penalty(n + 1, alpha)
        if float(score.max()) > best:
            best, said = float(score.max()), target[int(score.argmax()), 1:].tolist()
    return said, best


@pytest.mark.parametrize("name", ["paper", "fairseq"])
def test_a_beam_as_wide_as_the_tree_finds_what_enumeration_finds(name: str) -> None:
    rule = RULES[name]._replace(slope=0, extra=3)
    lengths = set()
    for seed, alpha in itertools.product(range(3), (0.0, 0.6, 2.0)):
        model = net(seed, vocabulary=6, dialect=name)
        source = sentences(5, 2, 4, seed=seed, vocabulary=6)
        said, scores = beam_search(model, source, 128, alpha, rule, BOS, EOS)
        for row, score, one in zip(said.tolist(), scores.tolist(), source, strict=True):
            expected, best = enumerated(model, one[one != PAD][None], alpha, rule)
            assert score == pytest.approx(best, rel=1e-5)
            assert row[: row.index(EOS) + 1] == expected
            lengths.add(len(expected))
    assert {rule.least + 1, 4} <= lengths


@pytest.mark.parametrize("name", ["paper", "fairseq"])
def test_the_search_does_not_depend_on_company_and_gains_by_width(name: str) -> None:
    model, rule = net(3, dialect=name), RULES[name]._replace(slope=1, extra=2)
    rows = [row[row != PAD].tolist() for row in sentences(3, 9, 5, 1, 7, 4)]
    together = translate(model, rows, 3, 0.6, rule, BOS, EOS)
    assert together == [translate(model, [row], 3, 0.6, rule, BOS, EOS)[0] for row in rows]
    source = sentences(6, 6, 6, 6)
    wide, narrow = (beam_search(model, source, k, 0.6, rule, BOS, EOS)[1].mean() for k in (8, 1))
    assert wide >= narrow


def test_one_beam_is_greedy() -> None:
    model, source = net(2, dialect="bentrevett", source_vocabulary=11, positions="learned"), sentences(5, 5)
    rule = RULES["bentrevett"]._replace(extra=6)
    said, _ = beam_search(model, source, 1, 1.0, rule, BOS, EOS)
    for one, row in zip(source, said.tolist(), strict=True):
        history = [BOS]
        while len(history) < 8 and history[-1] != EOS:
            with torch.no_grad():
                logits = model(one[None], torch.tensor([history]))[0, -1]
            logits[PAD] = -math.inf
            history.append(int(logits.argmax()) if len(history) < 7 else EOS)
        assert row[: row.index(EOS) + 1] == history[1:]


def test_the_search_stops_where_each_source_tells_it_to() -> None:
    model = net(1, dialect="bentrevett", source_vocabulary=11, positions="learned")
    assert model.head is not None
    with torch.no_grad():
        model.head.bias[EOS] = -1e4  # the end is all but impossible
    said, _ = beam_search(model, sentences(2, 8), 2, 0.6, RULES["paper"]._replace(extra=3), BOS, EOS)
    assert [row.index(EOS) for row in said.tolist()] == [2 - 1 + 3, 8 - 1 + 3]


def test_compounds() -> None:
    assert data.split_compounds("ein lkw-anhänger - a-b-c") == (
        "ein lkw ##AT##-##AT## anhänger - a ##AT##-##AT## b-c"  # as perl's s///g has it
    )


# ---- runs


def test_early_stopping_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = ("--preset", "smoke", "--patience-epochs", "1", "--lr", "0.3")
    whole = run(tmp_path / "whole", *stops)
    assert whole.metrics["updates"] is not None
    assert whole.metrics["updates"] < PRESETS["smoke"].train_steps
    (tmp_path / "whole/records").rename(tmp_path / "kept")
    with pytest.raises(SystemExit):
        launch("transformer", ["--resume", str(tmp_path / "whole")])
    again = read(next((tmp_path / "whole/records").glob("*.json")))
    assert again.metrics == whole.metrics


def test_words_learned_positions_and_the_best_epoch(tmp_path: Path) -> None:
    sizes = "--dataset synthetic/pairs --width 32 --heads 2 --key-size 16 --value-size 16 --feed-forward 64 --layers 1"
    record = run(
        tmp_path, "--preset", "multi30k-deen", *sizes.split(), "--epochs", "2", "--batch-tokens", "512", "--lr", "0.01"
    )
    assert record.metrics["updates"] is not None
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    seen = [line["validation_perplexity"] for line in lines if "validation_perplexity" in line]
    assert len(seen) == 2
    assert record.metrics["validation_perplexity"] == pytest.approx(min(seen), rel=1e-5)
    assert len((tmp_path / "test.txt").read_text().splitlines()) == 40


def test_language(tmp_path: Path) -> None:
    sizes = "--dataset synthetic/text --width 32 --heads 2 --key-size 16 --value-size 16 --feed-forward 64 --layers 2"
    more = "--context 32 --train-steps 40 --evaluate-steps 20 --evaluate-batches 40 --warmup-steps 5"
    arguments = ["--preset", "shakespeare-cpu", *sizes.split(), *more.split()]
    record = run(tmp_path / "a", *arguments)
    losses = [record.metrics[f"{name}validation_loss{end}"] for name, end in (("", ""), ("best_", ""), ("", "_whole"))]
    last, best, exact = (float(v or 0) for v in losses)
    assert best <= last < 3.3  # 32 characters: log 32 = 3.47
    assert last == pytest.approx(exact, rel=0.05)
    halves = run(tmp_path / "b", *arguments, "--bfloat16", "True")
    assert halves.metrics["validation_loss"] == pytest.approx(last, rel=0.02)


def test_the_loss_of_a_whole_text_counts_every_character_once() -> None:
    ids, table = torch.randint(5, (47,)), torch.randn(5, 5).log_softmax(-1)  # a bigram model sees no window's edge
    found = whole_text(ids, 8, 2, lambda batch: -table[batch[0], batch[1]].mean())
    assert found == pytest.approx(-float(table[ids[:-1], ids[1:]].mean()), rel=1e-5)


def test_section3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "TIMED", dict.fromkeys(analysis.TIMED, (16, 32)))
    record = run(tmp_path, "--preset", "section3")
    scaled, unscaled = (record.metrics[f"softmax_gradient_{name}"] for name in ("scaled", "unscaled"))
    assert scaled is not None
    assert unscaled is not None
    assert scaled > unscaled
    assert record.metrics["dot_product_variance"] == pytest.approx(64, rel=0.05)


def test_maps_are_what_the_model_attends_with(tmp_path: Path) -> None:
    model, source, target = net(), sentences(7, 4), sentences(6, 6, seed=2)
    maps = analysis.attention_maps(model, source, target)
    assert len(maps) == 2 + 2 * 3
    for name, a in maps.items():
        torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:-1], dtype=a.dtype))
        assert name.startswith("encoder") or "cross" in name or (a.triu(1) == 0).all()
    assert (maps["decoder.1.cross_attention"][1, ..., 4:] == 0).all()
    x = model.embedded(source, "source")  # the first layer's output, from its map alone
    first: Any = model.encoder[0].self_attention
    v = first.qkv(x)[..., 32:].unflatten(-1, (4, 4)).transpose(1, 2)
    by_map = first.out((maps["encoder.0.self_attention"] @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_map, first(x, mask=(source != PAD)[:, None, None]))
    run(tmp_path / "run", "--preset", "smoke", "--train-steps", "2")
    assert (tmp_path / "run/attention.png").stat().st_size > 10_000


def test_a_run_keeps_the_byte_pairs_it_learned(tmp_path: Path) -> None:
    record = run(tmp_path / "run", "--preset", "smoke", "--train-steps", "1")
    kept = Subwords.load(tmp_path / "run/subwords.json")
    assert record.data["synthetic/pairs: 200 byte pairs"] == kept.fingerprint != Subwords([], ["<unk>"]).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--width 31", "width is odd"),
        ("--warmup-steps 0", "needs warmup_steps"),
        ("--beams 0", "begin at 1"),
        ("--units characters", "go with language"),
        ("--batch-tokens 5", "longer than a batch"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch("transformer", ["--preset", "smoke", "--output-dir", str(tmp_path / "run"), *arguments.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
