"""Train scikit-learn's digits with SGD and the LARS hook, sharded by FSDP2; a second run goes on where the first ended.

One machine, as many processes as it has GPUs (without a GPU they run on the CPU), and a folder for the checkpoints:

    torchrun --standalone --nproc-per-node 2 examples/fsdp2.py FOLDER

Several machines, the same command on each of them, with a folder that all of them share:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 examples/fsdp2.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook, param_groups

FOLDER = Path(sys.argv[1]) if len(sys.argv) == 2 else sys.exit("Give one argument, the folder for the checkpoints.")
EPOCHS, BATCH_SIZE = 10, 128


def main() -> None:
    """Train from the last checkpoint on, and print loss and accuracy on the first process."""
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda" if cuda else "cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)

    x, y = (torch.tensor(array, device=device) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 8, 8) / 16  # a sequence of eight rows
    sampler = DistributedSampler(train := TensorDataset(x[:1437], y[:1437]), drop_last=True)
    loader = DataLoader(train, BATCH_SIZE // dist.get_world_size(), sampler=sampler, drop_last=True)

    layers = [nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
    model = nn.Sequential(nn.Linear(8, 64), *layers, nn.Flatten(), nn.LayerNorm(512), nn.Linear(512, 10)).to(device)
    for module in (*layers, model):
        fully_shard(module)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=1e-4), lr=0.005, momentum=0.9)
    weights = [param for group in optimizer.param_groups if group["adapt"] for param in group["params"]]
    add_hook(optimizer, GradientLARS(), params=weights, absorb_weight_decay=True)  # norms and biases: plain SGD

    if saved := sorted(path.parent for path in FOLDER.glob("epoch-*/.metadata")):  # a file that is written last
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        checkpoint.load(state, checkpoint_id=saved[-1])
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    done = int(saved[-1].name.removeprefix("epoch-")) if saved else 0
    for epoch in range(done + 1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for inputs, targets in loader:
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() / len(loader) / dist.get_world_size()
        dist.all_reduce(total)
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        checkpoint.save(state, checkpoint_id=FOLDER / f"epoch-{epoch:04}")
        with torch.no_grad():
            accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {total.item():.4f}, test accuracy {accuracy.item():.1%}")

    dist.barrier()  # gloo may abort a process that leaves before the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
