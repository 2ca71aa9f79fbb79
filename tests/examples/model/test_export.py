"""`torch.export` of EBMC with its teachers and its ensemble."""

import pytest
import torch
from torch import nn

from ebmc_msa.data import synthetic
from ebmc_msa.data.batch import Batch, Spec
from ebmc_msa.data.split import SplitView
from ebmc_msa.model.ebmc import EBMC
from ebmc_msa.model.settings import Settings


class Inference(nn.Module):
    """Outputs and trust of raw inputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, lengths, present):
        out = self.model(Batch(features, lengths, present, None))
        return out.outputs, out.trust


@pytest.mark.slow
# torch.export's own: it warns of constants that it lifts.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_both_stages_are_exported_for_any_batch_size():
    dataset = synthetic(n=(16, 24, 8))
    spec = Spec.of(dataset)
    split = SplitView.of(dataset.splits["valid"], spec, torch.device("cpu"))
    torch.manual_seed(0)
    model = EBMC(spec, Settings())
    model.start_balancing(split, split, {})
    model = model.finalize(split).eval()
    rows = {0: torch.export.Dim("rows", min=2)}
    with torch.no_grad():
        batch = split.rows(torch.arange(6))
        inputs = (batch.features, batch.lengths, batch.present)
        shapes = tuple(dict.fromkeys(group, rows) for group in inputs)
        program = torch.export.export(Inference(model), inputs, dynamic_shapes=shapes)
        for size in (6, 3):
            few = batch.rows(slice(size))
            outputs, trust = program.module()(few.features, few.lengths, few.present)
            expected = model(Batch(few.features, few.lengths, few.present, None))
            torch.testing.assert_close(outputs, expected.outputs)
            torch.testing.assert_close(trust, expected.trust)
