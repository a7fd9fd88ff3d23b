"""Train scikit-learn's digits with LARS on any number of processes, with DistributedDataParallel.

One machine, as many processes as it has GPUs (without a GPU they run on the CPU):

    torchrun --standalone --nproc-per-node 2 examples/ddp.py

Several machines, the same command on each of them:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 examples/ddp.py

The batch size is that of all processes together, so that their number changes only the time.
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gradient_lars.torch import LARS, param_groups

BATCH_SIZE, EPOCHS, LR = 128, 12, 0.1


def main() -> None:
    """Train, and print loss and accuracy on the first process."""
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda" if cuda else "cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)

    x, y = (torch.tensor(array, device=device) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    train = TensorDataset(x[:1437], y[:1437])
    sampler = DistributedSampler(train, drop_last=True)
    loader = DataLoader(train, BATCH_SIZE // dist.get_world_size(), sampler=sampler, drop_last=True)

    # Group norms see one image at a time. Batch norms would need nn.SyncBatchNorm.convert_sync_batchnorm.
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ).to(device)
    # Norms and biases are neither adapted nor decayed; print(groups) shows the decision on each parameter.
    groups = param_groups(model, weight_decay=1e-4)
    optimizer = LARS(groups, lr=LR, momentum=0.9, trust_coefficient=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, EPOCHS * len(loader), cycle_momentum=False)
    parallel = DistributedDataParallel(model, device_ids=[torch.cuda.current_device()] if cuda else None)

    for epoch in range(1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(parallel(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # averages the gradients, so that LARS sees those of the whole batch
            optimizer.step()
            schedule.step()
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
