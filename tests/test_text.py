"""Text: units that come back whole, batches that are functions of (seed, step), BLEU by hand."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from common.data import text
from common.data.text import Streams, Subwords, TokenBatches, Vocabulary, Windows
from common.errors import UserError
from common.paths import ROOT

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
SENTENCES = st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=12)


# ---- corpora


def test_the_toy_language_is_a_translation() -> None:
    pairs = text.load_pairs("synthetic/pairs", "train", None)
    meaning: dict[str, set[str]] = {}
    for source, target in zip(pairs.source, pairs.target, strict=True):
        assert len(source.split()) == len(target.split())
        for word in source.split()[:-1]:  # but for the full stop, which is in every sentence
            meaning.setdefault(word, set(target.split()[:-1])).intersection_update(target.split())
    assert all(len(words) == 1 for words in meaning.values())  # every word has exactly one translation
    assert pairs.source != text.load_pairs("synthetic/pairs", "test", None).source


def test_a_fingerprint_sees_where_a_sentence_ends(tmp_path: Path) -> None:
    assert text._fingerprint(["ab", "c"]) != text._fingerprint(["a", "bc"])
    assert text._fingerprint(["a"], ["b"]) != text._fingerprint(["a", "b"])
    with pytest.raises(UserError, match="set PAPERS_DATA"):
        text.load_text("karpathy/tiny_shakespeare", tmp_path)


def test_splits_and_configurations_of_a_mirror(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"translation": [{"de": "ein haus", "en": "a house"}]}
    kind = datasets.Features({"translation": datasets.Translation(("de", "en"))})
    folder = tmp_path / "hub/wmt/wmt14/de-en"
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, kind).to_parquet(folder / "flickr-00000-of-00001.parquet")
    pairs = text.load_pairs("wmt/wmt14/de-en", "flickr", tmp_path)
    assert (pairs.source, pairs.target) == (["a house"], ["ein haus"])
    with pytest.raises(UserError, match="no columns en and fr"):
        text.load_pairs("wmt/wmt14/de-en", "flickr", tmp_path, ("en", "fr"))


def test_multi30k_as_its_scores_were_taken(papers_data: Path) -> None:
    test = text.load_pairs("bentrevett/multi30k", "test", papers_data)
    german = text.moses(test.target, "de")
    assert sum(len(sentence.split()) for sentence in german) == 12_103  # the published reflen
    assert len(text.load_pairs("local/multi30k-2017", "flickr", papers_data).source) == 1000
    assert len(text.load_pairs("local/multi30k-2017", "mscoco", papers_data).source) == 461


def test_tiny_shakespeare_whole(papers_data: Path) -> None:
    held = text.load_text("karpathy/tiny_shakespeare", papers_data)
    assert len(held.characters) == 1_115_394
    assert len(Vocabulary.of_characters(held.characters)) == 65


def test_moses() -> None:
    assert text.moses(["Don't “stop”, please!"], "en") == ['don \'t " stop , " please !']
    assert text.moses(["Zwei\u00a0 Männer."], "de") == ["zwei männer ."]


# ---- units


def test_vocabulary() -> None:
    held = Vocabulary.of(["b", "a", "c", "a", "b", "a"], min_count=2, specials=("<unk>",))
    assert held.tokens == ["<unk>", "a", "b"]
    assert held.decode(held.encode(["a", "c", "b"])) == ["a", "<unk>", "b"]
    with pytest.raises(UserError, match="'z' is not in the vocabulary of 3"):
        Vocabulary.of_characters("xya").encode("xz")


@given(SENTENCES)
@example(["</w>"] * 3)
@example(["a</w>a a</w>", "a</w>a </w>a </w></w>"] * 3)
@example(["<pad>a <pad>a <unk>", "<unk>b <unk>b a<bos>b"] * 3)
def test_subwords_come_back_whole(sentences: list[str]) -> None:
    subwords = Subwords.trained(sentences, 20)
    assert subwords.decode(subwords.encode(sentences)) == [" ".join(s.split()) for s in sentences]
    assert len(subwords.merges) <= 20


def test_merges_are_those_of_byte_pair_encoding() -> None:
    """Against the definition, on a text without ties among the first merges."""
    sentences = ["low low low low low lower lower newest newest newest newest newest newest widest widest widest"]
    words = Counter((*word[:-1], word[-1] + "</w>") for s in sentences for word in s.split())
    expected = []
    for _ in range(4):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        (best, n), *others = pairs.most_common()
        ties = {pair for pair, m in others if m == n}
        found = Subwords.trained(sentences, len(expected) + 1).merges[-1]
        assert found in {best, *ties}
        expected.append(found)
        words = Counter({_merged(word, found): n for word, n in words.items()})
    assert Subwords.trained(sentences, 4).merges == expected


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def test_subwords_are_the_same_in_every_process(tmp_path: Path) -> None:
    pairs = text.load_pairs("synthetic/pairs", "train", None)
    here = Subwords.trained(pairs.source + pairs.target, 60)
    program = (
        "from common.data import text; p = text.load_pairs('synthetic/pairs', 'train', None);"
        "print(text.Subwords.trained(p.source + p.target, 60).fingerprint)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here.fingerprint
    here.save(tmp_path / "subwords.json")
    assert Subwords.load(tmp_path / "subwords.json").fingerprint == here.fingerprint
    (tmp_path / "subwords.json").write_text(json.dumps({"merges": []}))
    with pytest.raises(UserError, match="holds no subwords"):
        Subwords.load(tmp_path / "subwords.json")


def test_an_unseen_letter_is_unknown_and_specials_are_silent() -> None:
    subwords = Subwords.trained(["ab ab abc"], 3)
    (numbers,) = subwords.encode(["ab z ab"])
    assert subwords.decode([[1, *numbers, 2, 0]]) == ["ab <unk> ab"]


# ---- batches


def test_windows_are_a_function_of_the_step() -> None:
    ids = torch.arange(50)
    one = Windows(ids, 8, 6, seed=3)
    x, y = one(5)
    assert torch.equal(y, x + 1)
    assert torch.equal(x, Windows(ids, 8, 6, seed=3)(5)[0])
    assert not torch.equal(x, one(6)[0])
    halves = [Windows(ids, 8, 6, seed=3, share=lambda batch, i=i: batch.chunk(2)[i])(5)[0] for i in (0, 1)]
    assert torch.equal(torch.cat(halves), x)
    first = torch.cat([Windows(ids, 48, 64, seed=0)(step)[0][:, 0] for step in range(4)])
    assert set(first.tolist()) == {0, 1}  # the last window ends with the text
    with pytest.raises(UserError, match="no window of 50"):
        Windows(ids, 50, 6, seed=3)


def test_streams_go_on_where_they_ended() -> None:
    streams = Streams(torch.arange(103), 8, 4)
    assert streams.per_epoch == 3
    whole = torch.cat([streams(step)[0] for step in range(streams.per_epoch)], 1)
    assert torch.equal(whole, torch.arange(100).view(4, 25)[:, :24])
    assert torch.equal(streams(1)[1], streams(1)[0] + 1)
    assert [streams.fresh(step) for step in range(4)] == [True, False, False, True]


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=60)


@given(LENGTHS, st.integers(24, 60), st.integers(0, 3), st.sampled_from([1, 4]), st.sampled_from([1, 2, 8]))
def test_token_batches(lengths: list[tuple[int, int]], tokens: int, seed: int, multiple: int, rows: int) -> None:
    source, target = ([[10 + i] * pair[side] for i, pair in enumerate(lengths)] for side in (0, 1))
    batches = TokenBatches(source, target, tokens, seed, multiple=multiple, rows=rows)
    seen: Counter[int] = Counter()
    for step in range(batches.per_epoch, 2 * batches.per_epoch):
        batch = batches(step)
        assert max(batch.source.numel(), batch.target_out.numel()) <= tokens
        assert batch.source.shape[1] % multiple == batch.target_in.shape[1] % multiple == 0
        assert batch.tokens == (batch.target_out != 0).sum() == (batch.target_in != 0).sum()
        columns = batch.index, batch.source, batch.target_in, batch.target_out
        for i, x, y_in, y in zip(*(column.tolist() for column in columns), strict=True):
            assert [n for n in x if n] == [*source[i], 2]
            assert [n for n in y_in if n] == [1, *target[i]]
            assert [n for n in y if n] == [*target[i], 2]
            seen[i] += 1
    assert seen == Counter(range(len(lengths)))  # each sentence once an epoch
    sizes = sorted(len(batch) for batch in batches._batches[:-1])
    assert all(size % rows == 0 or size < rows for size in sizes)


def test_processes_share_a_token_batch() -> None:
    source = [[5] * (1 + i % 7) for i in range(40)]
    whole, halves = ([TokenBatches(source, source, 64, 0, part=(i, n)) for i in range(n)] for n in (1, 2))
    for step in range(2 * whole[0].per_epoch):
        parts = [half(step) for half in halves]
        assert sorted(torch.cat([part.index for part in parts]).tolist()) == sorted(whole[0](step).index.tolist())
        assert {part.tokens for part in parts} == {whole[0](step).tokens}
    n = whole[0].per_epoch
    orders = [[whole[0](step).tokens for step in range(first, first + n)] for first in (0, n)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    with pytest.raises(UserError, match="longer than a batch of 7"):
        TokenBatches(source, source, 7, 0)
    with pytest.raises(UserError, match="fewer sentences than the 3 processes"):
        TokenBatches(source, source, 16, 0, part=(0, 3))


# ---- scores


def test_bleu_by_hand() -> None:
    """multi-bleu.perl's arithmetic: clipped n-gram matches, geometric mean, brevity penalty; no smoothing."""
    hypotheses = ["the cat sat on the mat", "a small dog runs"]
    references = ["the cat sat on a mat today", "a small dog runs fast"]
    precisions = []
    for n in (1, 2, 3, 4):
        right = total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            grams = [
                Counter(zip(*(words[i:] for i in range(n)), strict=False))
                for words in (hypothesis.split(), reference.split())
            ]
            right, total = right + (grams[0] & grams[1]).total(), total + grams[0].total()
        precisions.append(right / total)
    brevity = math.exp(1 - 12 / 10)
    expected = 100 * brevity * math.prod(precisions) ** 0.25
    found = text.tokenised_bleu(hypotheses, references)
    assert found.score == pytest.approx(expected)
    assert (found.bp, found.sys_len, found.ref_len) == (pytest.approx(brevity), 10, 12)
    assert text.tokenised_bleu(["a b c"], ["x y z"]).score == 0


def test_sacrebleu_names_its_signature() -> None:
    name, score = text.bleu(["The cat sat there."], ["the cat sat there."], lowercase=True)
    assert name.startswith("BLEU|nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:")
    assert score == pytest.approx(100)
