"""`study`: each command from its arguments to its files, on tiny data."""

import csv
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_runs import ROOT, TINY_DATA, TINY_MODEL, build_arguments

from skyformer.report.style import style_of
from skyformer.study import approximation_pictures
from skyformer.study.inputs import example_of_length, heads_of_encoder, heads_of_setting, layer_inputs
from skyformer.study.peers import taylor_softmax
from skyformer.study.setting import Setting, make_parser


@pytest.fixture(scope="module")
def study(main, tmp_path_factory, request):
    """`study("spectrum", "listops", "--examples=1")` → the folder it wrote to."""
    data_dir = request.getfixturevalue("data_dir")

    def run(kind, task, *extra):
        folder = tmp_path_factory.mktemp(kind)
        main(["study", kind, *tiny(data_dir, task), f"--output={folder}", *extra])
        return folder

    return run


def tiny(data_dir, task):
    """The data and model of `build_arguments`; a study has no trainer to set."""
    arguments = build_arguments(data_dir, task, "unused")
    return [argument for argument in arguments if not argument.startswith("--trainer")]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def colors_of(path):
    with Image.open(path) as picture:
        return {color for _, color in picture.convert("RGB").getcolors(1 << 20)}


def is_drawn(backend, path):
    return tuple(bytes.fromhex(style_of(backend).color[1:])) in colors_of(path)


@pytest.fixture(scope="module")
def checkpoint(main, tiny_arguments, tmp_path_factory):
    """Of a Skyformer that has been trained for nine steps."""
    folder = tmp_path_factory.mktemp("run")
    main(["fit", *tiny_arguments("listops", folder)])
    return folder / "checkpoints/last.ckpt"


def test_approximation(study, capsys):
    lengths = "--lengths=[20,64]"
    folder = study(
        "approximation", "listops", lengths, "--num_landmarks=[16,32]", "--draws=2", "--backends=[skyformer,performer]"
    )
    errors = rows_of(folder / "errors.csv")
    assert {(row["length"], row["num_landmarks"]) for row in errors} == {("20", "16"), ("64", "16"), ("64", "32")}
    assert {(row["method"], row["target"]) for row in errors} == {
        ("skyformer", "kernelized"),
        ("skyformer", "softmax"),
        ("skyformer", "softmax through A and D"),
        ("performer", "softmax"),
    }
    assert {row["choice"] for row in rows_of(folder / "landmarks.csv")} >= {"k-means", "ridge leverage"}
    assert {row["length"] for row in rows_of(folder / "bound.csv")} == {"20", "64"}
    text = (folder / "approximation.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    own = [
        float(row["relative"])
        for row in errors
        if (row["method"], row["target"], row["length"], row["num_landmarks"]) == ("performer", "softmax", "64", "32")
    ]
    line = next(line for line in text.split("n = 64")[1].splitlines() if line.startswith("| Performer"))
    assert line.split("|")[-2].strip() == f"{sum(own) / 2:.2g}"
    assert is_drawn("performer", folder / "approximation.png")
    with Image.open(folder / "landmarks.png") as picture:
        assert min(picture.size) > 500


def test_other_libraries_have_one_error_for_every_size(study):
    pytest.importorskip("taylor_series_linear_attention", reason="not installed: pip install -e '.[peers]'")
    peers = "--peers=[taylor-series-linear-attention]"
    sizes = ["--lengths=[64]", "--num_landmarks=[16,32]", "--draws=2"]
    folder = study("approximation", "listops", *sizes, "--backends=[performer]", peers)
    rows = [row for row in rows_of(folder / "errors.csv") if row["method"] != "performer"]
    assert [(row["num_landmarks"], row["target"]) for row in rows] == [("16", "softmax"), ("32", "softmax")]
    assert rows[0]["relative"] == rows[1]["relative"]
    assert 0 < float(rows[0]["relative"]) < 0.5
    assert "taylor-series-linear-attention" in (folder / "approximation.md").read_text(encoding="utf-8")


def expansion(x):
    """1, x, and all x_i x_j / √2: the products of two are 1 + q·k + (q·k)² / 2."""
    pairs = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / 2**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, pairs], dim=-1)


def test_taylor_softmax_by_hand():
    query, key, value = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    logits = query @ key.mT / 2
    weights = 1 + logits + logits.square() / 2
    expected = weights @ value / weights.sum(dim=-1, keepdim=True)
    library = SimpleNamespace(second_taylor_expansion=expansion)
    torch.testing.assert_close(taylor_softmax(library, query, key, value), expected)


def test_bound_beyond_the_picture_is_said_above_it(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(approximation_pictures, "save_picture", lambda figure, path: drawn.append(figure))
    place = {"length": 64, "ridge": 0.0, "choice": "uniform", "seconds": 1e-3, "seconds_to_attend": 2e-3}
    choices = [{**place, "num_landmarks": d, "relative": 1 / d} for d in (8, 16)]
    bounds = [{"length": 64, "relative": 0.5, "d_stat": 9, "bound": 5000}]
    approximation_pictures.draw_choices(choices, bounds, "title", tmp_path / "landmarks.png")
    panel, below = drawn[0].axes
    assert below.lines[0].get_xydata().tolist() == [[pytest.approx(3), 1 / 8], [pytest.approx(3), 1 / 16]]
    assert panel.get_title("right") == "λ of Theorem 2, its C = 1: from d = 5,000 on"
    labels = panel.get_legend_handles_labels()[1]
    assert "λ at d = d_stat, worst head" in labels
    assert "λ of Theorem 2, its C = 1" not in labels


def test_spectrum(study, capsys):
    folder = study("spectrum", "image", "--length=100", "--examples=2", "--backends=[softmax,skyformer,bigbird]")
    rows = rows_of(folder / "spectrum.csv")
    for method in ("softmax", "skyformer", "bigbird"):
        values = [float(row["singular_value"]) for row in rows if row["method"] == method]
        assert len(values) == 16, "two heads of 8"
        assert values[0] == 1
        assert values == sorted(values, reverse=True)
        assert is_drawn(method, folder / "spectrum.png")
    assert "layer 2 on image, initialised weights" in capsys.readouterr().out


def test_stability(study, capsys):
    folder = study("stability", "retrieval", "--steps=3", "--repeats=2", "--backends=[softmax,kernelized]")
    rows = rows_of(folder / "stability.csv")
    assert len(rows) == 2 * 2 * 3
    assert all(float(row["tau"]) > 0 for row in rows)
    assert "| Kernelized" in capsys.readouterr().out
    assert is_drawn("kernelized", folder / "stability.png")
    again = study("stability", "retrieval", "--steps=3", "--repeats=2", "--backends=[softmax,kernelized]")
    assert rows_of(again / "stability.csv") == rows, "same configuration, same seed, same numbers"


def test_checkpoint_brings_its_configuration_and_weights(checkpoint, tmp_path, main, capsys):
    main(["study", "spectrum", f"--checkpoint={checkpoint}", "--length=30", f"--output={tmp_path}", "--examples=1"])
    assert f"on listops, {checkpoint} (skyformer)" in capsys.readouterr().out
    parser = make_parser("x", "", ["softmax"], "x")
    setting = Setting.read(parser, ["--checkpoint", str(checkpoint)])
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    name = "encoder.blocks.1.attention.query_key_value.weight"
    for backend in (None, "softmax", "reformer"):
        model = setting.make_model(backend)
        assert model.encoder.tokens.weight.equal(state["encoder.tokens.weight"])
        weight, trained = (x[name] for x in (model.state_dict(), state))
        assert weight[:16].equal(trained[:16]), "query"
        assert weight[-16:].equal(trained[-16:]), "value"
    (query, key, value) = heads_of_setting(setting, [20], 0)[20]
    model = setting.make_model()
    tokens = example_of_length(setting, 20, 0).tokens
    embedded = model.encoder.tokens.weight[tokens] + model.encoder.positions.weight[:20]
    block = model.encoder.blocks[0]
    projected = block.attention.query_key_value(block.attention_norm(embedded))
    for number, heads in enumerate((query, key, value)):
        part = projected[..., 16 * number : 16 * (number + 1)]
        torch.testing.assert_close(torch.cat(heads.unbind(1), dim=-1), part)


def test_runs_are_compared_each_with_its_own_attention(checkpoint, tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path / "run", "attention/softmax")])
    other = tmp_path / "run/checkpoints/last.ckpt"
    named = [f"--checkpoint={path}" for path in (checkpoint, other, checkpoint)]
    main(["study", "spectrum", *named, "--length=30", "--examples=1", f"--output={tmp_path / 'out'}"])
    methods = list(dict.fromkeys(row["method"] for row in rows_of(tmp_path / "out/spectrum.csv")))
    assert methods == [f"skyformer {checkpoint} (skyformer)", "softmax"]


def test_models_share_what_they_have_in_common(data_dir):
    setting = Setting.read(make_parser("x", "", [], "x"), tiny(data_dir, "text"))
    first, second = (setting.make_model(backend).state_dict() for backend in ("linformer", "nystromformer"))
    shared = [name for name in first if name in second and first[name].shape == second[name].shape]
    assert len(shared) > 20
    assert all(first[name].equal(second[name]) for name in shared)
    assert not setting.make_model("linformer", seed=1).state_dict()[shared[0]].equal(first[shared[0]])


def test_weights_of_shared_queries_and_keys_go_both_ways(data_dir, tmp_path, main, tiny_arguments):
    main(["fit", *tiny_arguments("listops", tmp_path, "attention/reformer"), "--trainer.max_steps=3"])
    path = tmp_path / "checkpoints/last.ckpt"
    setting = Setting.read(make_parser("x", "", [], "x"), ["--checkpoint", str(path)])
    name = "encoder.blocks.0.attention.query_key_value.weight"
    trained = torch.load(path, weights_only=True)["state_dict"][name]
    weight = setting.make_model("softmax").state_dict()[name]
    assert weight.equal(torch.cat([trained[:16], trained[:16], trained[16:]])), "keys are the queries"


def test_example_is_one_where_one_is_long_enough(data_dir):
    setting = Setting.read(make_parser("x", "", [], "x"), tiny(data_dir, "listops"))
    split = setting.data.splits["val"]
    longest = int(split.lengths.max())
    one = split[int(split.lengths.argmax())].tokens[0, :longest]
    assert example_of_length(setting, longest, 0).tokens[0].equal(one)
    whole = torch.cat([split[index].tokens[0][split[index].mask[0]] for index in range(len(split))])
    for number in (0, 1):
        joined = example_of_length(setting, 100, number).tokens
        assert joined[0].equal(whole[100 * number : 100 * (number + 1)]), "each its own tokens"
    model = setting.make_model(None, 100)
    assert layer_inputs(model, example_of_length(setting, 100, 0), 1)[1][0].shape == (1, 2, 100, 8)


def test_longer_of_two_documents(data_dir):
    setting = Setting.read(make_parser("x", "", [], "x"), tiny(data_dir, "retrieval"))
    split = setting.data.splits["val"]
    longest = int(split.lengths.max())
    batch = split[int(split.lengths.argmax())]
    document = int(batch.mask[0].sum(dim=1).argmax())
    found = example_of_length(setting, longest, 0).tokens[0]
    assert found.equal(batch.tokens[0, document][batch.mask[0, document]])


def test_black_pixels_left_out_leave_the_others_in_their_places(data_dir):
    arguments = tiny(data_dir, "pathfinder")
    setting = Setting.read(make_parser("x", "", [], "x"), arguments)
    batch = setting.data.splits["val"][0]
    example = example_of_length(setting, 20, 0)
    assert example.tokens[0].equal(batch.tokens[0, :20])
    assert example.position[0].equal(batch.position[0, :20])
    assert example.position[0, -1] > 19
    model = setting.make_model()
    query = layer_inputs(model, example, 0)[1][0]
    embedded = model.encoder.tokens.weight[example.tokens] + model.encoder.positions.weight[example.position]
    block = model.encoder.blocks[0]
    projected = block.attention.query_key_value(block.attention_norm(embedded))[..., :16]
    torch.testing.assert_close(torch.cat(query.unbind(1), dim=-1), projected)


@pytest.mark.parametrize(
    ("kind", "extra"), [pytest.param("stability", "--steps=2", marks=pytest.mark.long), ("spectrum", "--length=20")]
)
def test_papers_protocol(kind, extra, main, data_dir, tmp_path):
    """Attention in float32, landmarks drawn at each call."""
    arguments = tiny(data_dir, "listops")
    arguments.insert(1, f"--config={ROOT}/configs/protocol/paper.yaml")
    for draw in ("fresh", "fixed"):
        text = "model: {attention: {class_path: SkyformerAttention, init_args: {num_landmarks: 8, eval_landmarks: %s}}}"
        (tmp_path / f"{draw}.yaml").write_text(text % draw)
    files = ",".join(str(tmp_path / f"{draw}.yaml") for draw in ("fresh", "fixed"))
    main(["study", kind, *arguments, f"--backends=[softmax,{files}]", f"--output={tmp_path}", extra])
    if kind == "stability":
        rows = rows_of(tmp_path / "stability.csv")
        fresh, fixed = ([float(row["tau"]) for row in rows if row["method"] == draw] for draw in ("fresh", "fixed"))
        assert max(fresh) < 3 * max(fixed), "else the score is that of another draw, not of the step"


def test_own_attention_and_two_of_one_class(study, tmp_path):
    plain = ROOT / "configs/protocol/nystromformer_without_convolution.yaml"
    backends = f"--backends=[softmax,nystromformer,{plain}]"
    folder = study("stability", "listops", "--steps=1", backends)
    methods = [row["method"] for row in rows_of(folder / "stability.csv")]
    assert methods == ["softmax", "nystromformer", "nystromformer_without_convolution"]
    folder = study(
        "stability", "listops", "--steps=1", "--backends=[softmax,protocol/nystromformer_without_convolution]"
    )
    assert [row["method"] for row in rows_of(folder / "stability.csv")] == ["softmax", "nystromformer"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stability", "--backends=[skyformer]"], "Fix: add softmax"),
        (["stability", "--backends=[softmax,no_such]"], "--backends: no file"),
        (["stability", "--steps=0"], "--steps must be at least 1 (got 0). Fix: "),
        (["stability", "--steps=100"], "--steps: an epoch has 12 batches (got 100)"),
        (["stability", "--backends=[]"], "--backends []: name one or more"),
        (["spectrum", "--backends=[softmax,softmax]"], "two have equal names"),
        (["spectrum", "--length=2000"], "too few to be joined"),
        (["approximation", "--lengths=[16]"], "each length must exceed one number of them"),
        (["approximation", "--lengths=[20]", "--backends=[softmax]"], "has no size to vary"),
        (["spectrum", "--layer=2"], "--layer 2: the model has 2 layers, 0 … 1"),
        (["spectrum", "--examples=0"], "--examples must be at least 1 (got 0). Fix: "),
        (["approximation", "--lengths=[8]"], "--lengths [8]: name numbers of at least 16"),
        (["approximation", "--layer=5"], "--layer 5: the model has 2 layers"),
        (["approximation", "--peers=[nothing]"], "--peers nothing is not one of taylor-series-linear-attention"),
        (["approximation", "--draws=0"], "--draws 0 must be at least 1"),
        (["nothing"], "study nothing: name one of approximation, locality, similarity, spectrum, stability"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said, main, data_dir, tmp_path, capsys):
    kind, *extra = arguments
    with pytest.raises(SystemExit) as stopped:
        main(["study", kind, *tiny(data_dir, "listops"), f"--output={tmp_path / 'out'}", *extra])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_positions_of_a_checkpoint_are_not_made_up(checkpoint, tmp_path, main, capsys):
    with pytest.raises(SystemExit):
        main(["study", "approximation", f"--checkpoint={checkpoint}", "--lengths=[65]", f"--output={tmp_path}"])
    assert "has positions for 64 tokens, not for 65" in capsys.readouterr().err


def test_tiny_sizes_are_those_of_the_other_tests():
    """The expectations above count on them."""
    assert (TINY_MODEL["embed_dim"], TINY_DATA["listops"]["max_length"]) == (16, 64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A Hugging Face encoder of two layers, with random weights, and its tokeniser."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "text.txt").write_text("a b c d e f g h i j " * 5, encoding="utf-8")
    return folder


def test_heads_of_an_encoder_give_its_own_attention(encoder):
    from transformers import AutoModel, AutoTokenizer

    query, key, value = heads_of_encoder(str(encoder), encoder / "text.txt", [20], 1)[20]
    assert query.shape == key.shape == value.shape == (1, 2, 20, 8)
    model = AutoModel.from_pretrained(encoder, attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(encoder)((encoder / "text.txt").read_text(), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        attentions = model(ids[:, :20], output_attentions=True).attentions
    torch.testing.assert_close(torch.softmax(query @ key.mT / 8**0.5, dim=-1), attentions[1], rtol=1e-4, atol=1e-6)


def test_approximation_of_an_encoder(encoder, tmp_path, main, capsys):
    named = [f"--encoder={encoder}", f"--text={encoder / 'text.txt'}"]
    main(
        [
            "study",
            "approximation",
            *named,
            "--lengths=[32]",
            "--num_landmarks=[16]",
            "--draws=1",
            f"--output={tmp_path}",
        ]
    )
    assert {row["length"] for row in rows_of(tmp_path / "errors.csv")} == {"32"}
    with pytest.raises(SystemExit):
        main(["study", "approximation", *named, "--lengths=[41]", f"--output={tmp_path}"])
    assert "tokens for 40 at most" in capsys.readouterr().err


def test_encoder_that_is_none_is_said(tmp_path, main, capsys):
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["study", "approximation", f"--encoder={tmp_path}", f"--text={tmp_path / 'text.txt'}"])
    assert f"--encoder {tmp_path}: " in capsys.readouterr().err


def test_more_positions_than_an_image_has_start_as_usual(data_dir):
    """Where a study asks for them; the task's own number starts in two dimensions."""
    setting = Setting.read(make_parser("x", "", [], "x"), tiny(data_dir, "pathfinder"))
    own, longer = (setting.make_model(max_length=length).encoder.positions.weight.detach() for length in (1024, 1100))
    assert torch.equal(own[:, 8:].reshape(32, 32, 8)[0], own[:, 8:].reshape(32, 32, 8)[31]), "the column, in every row"
    assert longer.shape[0] == 1100
    assert longer.std() == pytest.approx(0.02, rel=0.05)
