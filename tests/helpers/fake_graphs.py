"""CUDA graphs without a GPU: what `GraphedStep` asks of torch is replaced, and a replay computes the step again.

A replay fails where the model's settings are not those of the capture, since a real graph would ignore the new ones.
"""

from contextlib import contextmanager, nullcontext
from typing import ClassVar

import pytest
import torch

from skyformer.model import classifier, cuda_graph


class FakeStep(cuda_graph.GraphedStep):
    """Remembers the last run, which a capture replays."""

    captured: ClassVar[list["FakeStep"]] = []

    def _run(self, inputs, parameters):
        results, trained = super()._run(inputs, parameters)
        self.last = inputs, parameters, results
        return results, trained

    def snapshot(self):
        rates = [part.p for part in self.module.modules() if hasattr(part, "p")]
        switches = [part.training for part in self.module.modules()]
        return rates, switches, [parameter.requires_grad for parameter in self.module.parameters()]

    def _capture(self, inputs):
        FakeStep.captured.append(self)
        return super()._capture(inputs)


class FakeGraph:
    def pool(self):
        return "pool"

    def replay(self):
        inputs, parameters, results = self.work
        assert self.step.snapshot() == self.settings, "a graph keeps the settings of its capture"
        again, _ = cuda_graph.GraphedStep._run(self.step, inputs, parameters)
        for result, value in zip(results, again, strict=True):
            result.copy_(value)


class FakeStream:
    def wait_stream(self, other):
        pass


@contextmanager
def fake_capture(graph, pool, capture_error_mode):
    yield
    graph.step = FakeStep.captured[-1]
    graph.work, graph.settings = graph.step.last, graph.step.snapshot()


def use_fake_graphs(patch: pytest.MonkeyPatch) -> list[FakeStep]:
    """Let runs on a CPU use graphs; returns a list with one entry a capture."""
    FakeStep.captured = []
    for name, value in {
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": nullcontext,
        "CUDAGraph": FakeGraph,
        "graph": fake_capture,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(classifier, "GraphedStep", FakeStep)
    patch.setattr(classifier, "reason_against_graph", lambda trainer, recomputes: None)
    return FakeStep.captured
