"""Whatever a user writes as an argument or in a YAML file: it works, or one line says what to change."""

import sys
from collections.abc import Iterable

import fuzz_values
import pytest
from fuzz_arguments import ACCEPTED, KINDS, Sandbox, judge
from fuzz_cases import BACKENDS, Case, all_cases, keys_of
from fuzz_process import outcome

SECONDS = 5  # for a legal value that takes forever; such a case passes


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory) -> Sandbox:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py"])
        return Sandbox(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def cases(sandbox, main) -> list[Case]:
    return list(all_cases(sandbox.base))


def wrong(sandbox: Sandbox, cases: Iterable[Case]) -> list[str]:
    """What is wrong with the outcomes of these."""
    said = []
    for case in cases:
        found, strays = sandbox.run(case, SECONDS)
        verdict = judge(case, found, strays)
        if verdict not in KINDS:
            said.append(f"{case.base[0]} {case.key or case.label}={case.label}: {verdict}\n{found.said[-400:]}")
    return said


CALLED = [("fit", key) for key in ("model.attention", "model.optimizer", "model.lr_scheduler", "trainer.callbacks")]


@pytest.mark.parametrize(("command", "key"), [*CALLED, ("prepare", "best_checkpoint"), ("prepare", "data")])
def test_no_function_is_called(command, key, sandbox):
    label = "function with arguments"
    change = f"--{key}={fuzz_values.VALUES[label]}"
    assert not wrong(sandbox, [Case(tuple(sandbox.base(command)), key, label, change)])


@pytest.mark.parametrize("kind", ["junk", "utf-16", "tag of an object", "section as list", "key twice"])
def test_no_yaml_file_stops_it_short(kind, sandbox):
    assert not wrong(sandbox, [Case(tuple(sandbox.base("fit")), "", kind, fuzz_values.FILES[kind])])


@pytest.mark.long
def test_the_arguments_by_themselves_work(sandbox):
    for command in ("fit", "validate", "test", "predict", "prepare", "report"):
        case = Case(tuple(sandbox.base(command)), "", "comment", f"--config={sandbox.root}/none.yaml")
        (sandbox.root / "none.yaml").write_text("verbose: true\n" if command in ("validate", "test") else "{}\n")
        if command == "report":
            case = case._replace(change="--output=run")
        found, strays = sandbox.run(case)
        assert judge(case, found, strays) == ACCEPTED, found.said


@pytest.mark.long
def test_all_keys_are_tried(cases, sandbox):
    keys = {case.key for case in cases}
    assert set(keys_of(tuple(sandbox.base("fit")))) <= keys
    for name in ("num_rounds", "conv_kernel", "redraw_every", "factor", "block_size", "sharing", "ridge"):
        assert f"model.attention.init_args.{name}" in keys
    assert len(BACKENDS) == 9


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["fit"], ["prepare"], ["fit", "--config"], ["--fit"], [""]])
def test_too_few_arguments(arguments, main):
    found = outcome(main, arguments)
    assert found.status == 2, found
    assert "\nerror: " in f"\n{found.said}"


@pytest.mark.long
def test_everything(sandbox, cases):
    assert not wrong(sandbox, cases)
