"""`import skyformer` gives the public names, lazily, and `docs/python.md` works as it is written."""

import inspect
import re
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import ROOT

import skyformer
from skyformer.attention import BACKENDS

PAGE = ROOT / "docs/python.md"


def test_page_runs_from_top_to_bottom(monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    text = PAGE.read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    exec(compile(code, str(PAGE), "exec"), names)
    positive = names["positive"]
    torch.testing.assert_close(positive, torch.tensor([0.79, 0.44]), atol=0.01, rtol=0)
    assert "`positive` is 0.79 and 0.44." in text
    assert names["exact"].shape == names["approximate"].shape == (2, 4, 1024, 32)
    assert names["mixed"].shape == (2, 1024, 128)
    assert names["vectors"].shape == (*names["tokens"].shape, 128)
    classifier, tokens, mask, label = (names[name] for name in ("classifier", "tokens", "mask", "label"))
    assert torch.nn.functional.cross_entropy(classifier(tokens, mask), label) < names["loss"] / 2, "it was trained"


def test_public_names():
    assert set(skyformer.__all__) == set(skyformer._MODULES)
    assert set(skyformer.__all__) <= set(dir(skyformer))
    for name in skyformer.__all__:
        assert getattr(skyformer, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'skyformer' has no attribute 'Encode'"):
        skyformer.Encode  # noqa: B018


def test_no_module_hides_a_public_name():
    """Importing a submodule sets an attribute of the package, which would then replace what `__getattr__` gives."""
    modules = {path.stem for path in (ROOT / "skyformer").iterdir()}
    assert not modules & set(skyformer.__all__)


@pytest.mark.parametrize("name", BACKENDS)
def test_encoder_by_name(name):
    def encode(attention) -> torch.Tensor:
        torch.manual_seed(0)
        encoder = skyformer.Encoder(20, 256, attention, embed_dim=16, hidden_dim=16).eval()
        return encoder(torch.arange(512).reshape(2, 256) % 20)

    assert torch.equal(encode(name), encode(BACKENDS[name]))


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"attention='skyforme'.*skyformer, softmax"):
        skyformer.Encoder(20, 256, "skyforme")


def test_names_are_those_of_the_overlays():
    overlays = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs/attention").glob("*.yaml")}
    assert overlays.keys() == BACKENDS.keys()
    for name, overlay in overlays.items():
        attention = overlay["model"]["attention"]
        assert attention["class_path"] == f"skyformer.attention.{BACKENDS[name].__name__}"
        parameters = inspect.signature(BACKENDS[name]).parameters
        defaults = {
            key: value.default for key, value in parameters.items() if value.default is not inspect.Parameter.empty
        }
        without_dropout = {key: 0.0 if key == "dropout" else value for key, value in attention["init_args"].items()}
        assert defaults == without_dropout, "the default arguments are the overlay's, without dropout"
