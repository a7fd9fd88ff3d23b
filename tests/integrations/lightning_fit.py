"""Two ranks of Lightning on `plain.batches`, one batch of each pair a rank; started by torchrun, prints the weights.

torchrun --standalone --nproc-per-node 2 tests/integrations/lightning_fit.py {ddp,fsdp2}
"""

import json
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]
warnings.simplefilter("ignore")

import lightning  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402

from gradient_lars import GradientLARS  # noqa: E402
from gradient_lars.integrations.lightning import GradientLARSCallback  # noqa: E402
from integrations.plain import LR, MOMENTUM, batches, linear, tensors  # noqa: E402

STRATEGIES = {"ddp": DDPStrategy, "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}


class Module(lightning.LightningModule):
    """The linear layer, sharded if asked."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.layer = strategy, linear()

    def configure_model(self):
        if self.strategy == "fsdp2":
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, _):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.named_parameters(), lr=LR, momentum=MOMENTUM)

    def train_dataloader(self):
        mine = [4 * batch + i for batch in range(self.global_rank, 6, 2) for i in range(4)]
        return DataLoader(Subset(tensors(batches(6)), mine), batch_size=4)


def main(strategy):
    """Train, and let the first rank print weight and bias."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module, callback = Module(strategy), GradientLARSCallback(GradientLARS(weight_decay=0.5))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=STRATEGIES[strategy](),
        max_epochs=1,
        use_distributed_sampler=False,
        callbacks=[callback],
        **quiet,
    )
    trainer.fit(module)
    found = [getattr(param, "full_tensor", lambda param=param: param)() for param in module.layer.parameters()]
    if trainer.is_global_zero:
        print("\nfound", json.dumps([param.tolist() for param in found]))


if __name__ == "__main__":
    main(sys.argv[1])
