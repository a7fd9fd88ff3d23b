"""What autograd sees of a step that writes to the pieces of DTensors."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gradient_lars.torch import LARS
from lars.expected import PATHS
from sharded.ranks import on_ranks


def _backward_through_old_weights():
    mesh = init_device_mesh("cpu", (1,))
    for path, options in PATHS.items():
        for where in (Shard(0), Replicate()):
            weights = torch.nn.Parameter(distribute_tensor(torch.ones(3, 3), mesh, [where]))
            inputs = distribute_tensor(torch.ones(3, 3), mesh, [Replicate()]).requires_grad_()
            optimizer = LARS([weights], 0.5, **options)
            for _ in range(3):
                loss = (weights @ inputs).sum()
                loss.backward(retain_graph=True)
                optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            assert weights._version == 3, path


def test_weights_that_a_graph_has_kept_are_known_to_have_changed():
    on_ranks(1, _backward_through_old_weights)
