"""The real Lightning, which always steps with a closure: the hook acts in automatic optimization as in a plain loop."""

import lightning
import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close
from torch_cases import to_numpy


def _network():
    torch.manual_seed(12)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = _network()

    def training_step(self, batch, _):
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)
        self.handle = add_hook(optimizer, GradientLARS(weight_decay=0.01))
        return optimizer


@pytest.mark.filterwarnings("ignore")  # Lightning's own: few workers, no logger
def test_same_parameters_as_a_plain_loop(tmp_path):
    data = torch.randn(32, 6, generator=torch.Generator().manual_seed(13))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=8)
    module = Module()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader)

    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    add_hook(optimizer, GradientLARS(weight_decay=0.01))
    for _ in range(2):
        for (batch,) in loader:
            optimizer.zero_grad()
            network(batch).square().mean().backward()
            optimizer.step()
    for a, b in zip(module.network.parameters(), network.parameters(), strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32")
    assert len(module.handle.rates()) == 4
