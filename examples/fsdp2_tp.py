"""Train scikit-learn's digits with LARS on a 2-D mesh: tensor parallel within a machine, FSDP2 over what is left.

One machine, an even number of processes, each with a GPU of its own (without a GPU they run on the CPU):

    torchrun --standalone --nproc-per-node 4 examples/fsdp2_tp.py

Several machines, the same command on each of them:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 examples/fsdp2_tp.py
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gradient_lars.torch import LARS, param_groups

BATCH_SIZE, EPOCHS = 128, 8


class Block(nn.Sequential):
    """A residual block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` and what the layers add to it, of the same shape."""
        return x + super().forward(x)


def main() -> None:
    """Train, and print loss and accuracy on the first process."""
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda" if cuda else "cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    mesh = init_device_mesh(device.type, (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)

    x, y = (torch.tensor(array, device=device) for array in load_digits(return_X_y=True))
    x = x.float() / 16
    train, groups = TensorDataset(x[:1437], y[:1437]), mesh["data"].size()
    sampler = DistributedSampler(train, groups, mesh.get_local_rank("data"), drop_last=True)  # a group sees the same
    loader = DataLoader(train, BATCH_SIZE // groups, sampler=sampler, drop_last=True)

    blocks = [Block(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(3)]
    model = nn.Sequential(*blocks, nn.LayerNorm(64), nn.Linear(64, 10)).to(device)
    for block in blocks:
        parallelize_module(block, mesh["tensor"], {"1": ColwiseParallel(), "3": RowwiseParallel()})
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    optimizer = LARS(param_groups(model, weight_decay=1e-4), lr=0.05, momentum=0.9, trust_coefficient=0.1)

    for epoch in range(1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(loader) / dist.get_world_size()
        dist.all_reduce(total)
        with torch.no_grad():
            accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {total.item():.4f}, test accuracy {accuracy.item():.1%}")

    dist.barrier()  # gloo may abort a process that leaves before the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
