"""Sums of many examples, in half precision too."""

import pytest
import torch

from skyformer.model.metrics import make_metrics


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mean_loss_is_summed_in_float32(dtype):
    """In bfloat16, 256 + 1 is 256."""
    metric = make_metrics(2).to(dtype)["loss"]
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 2
    for value in values:
        metric.update(value, weight=1)
    assert metric.compute().item() == pytest.approx(values.double().mean().item(), rel=1e-5)


def test_loss_that_is_not_a_number_is_not_left_out():
    metric = make_metrics(None)["loss"]
    for value in (1.0, torch.nan, 2.0):
        metric.update(torch.tensor(value), weight=3)
    assert metric.compute().isnan()


def test_mean_is_weighted():
    metric = make_metrics(None)["accuracy"]
    metric.update(torch.tensor(1.0), weight=3)
    metric.update(torch.tensor(0.5), weight=torch.tensor(1))
    assert metric.compute() == 3.5 / 4
