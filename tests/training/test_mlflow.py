"""Curves to MLflow, in files: one MLflow run for a run and all its resumes."""

import pytest

pytest.importorskip("mlflow", reason="MLflow is not installed: pip install -e '.[mlflow]'")


@pytest.fixture
def train(tmp_path, main, tiny_arguments, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    overlay = tiny_arguments("listops", tmp_path / "run", "trainer/mlflow")
    arguments = [argument for argument in overlay if not argument.startswith("--trainer.logger")]

    def run(command, *extra):
        """The experiment's runs after the command."""
        from mlflow.tracking import MlflowClient

        main([command, *arguments, *extra])
        client = MlflowClient(f"file:{tmp_path}/run/mlruns")
        found = client.search_runs([client.get_experiment_by_name("skyformer").experiment_id])
        return client, [found.info.run_id for found in found]

    return run


def test_resume_and_test_continue_the_mlflow_run(train, tmp_path):
    """Also with a setting that a resume may change: MLflow would refuse another value of the parameter."""
    client, (first,) = train("fit", "--trainer.max_steps=3")
    assert (tmp_path / "run/mlflow_id.txt").read_text() == first
    assert client.get_run(first).data.params["embed_dim"] == "16"
    _, runs = train("fit", "--trainer.max_steps=6", "--ckpt_path=last", "--model.cuda_graph=true")
    assert runs == [first]
    assert train("test")[1] == [first]
    losses = {(point.step, point.value) for point in client.get_metric_history(first, "train/loss")}
    assert sorted(step for step, _ in losses) == list(range(6)), "one value a step, also where a resume logs it again"
    data = client.get_run(first)
    assert "test/accuracy" in data.data.metrics
    assert data.info.status == "FINISHED"


def test_new_run_in_a_folder_without_checkpoints_gets_an_id_of_its_own(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mlflow_id.txt").write_text("former")
    _, (first,) = train("fit", "--trainer.max_steps=3")
    assert (tmp_path / "run/mlflow_id.txt").read_text() == first
