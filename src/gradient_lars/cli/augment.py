"""Random shifts and flips of images, the same for all optimizers and in any number of processes."""

from collections.abc import Callable

import torch

from gradient_lars.cli.recipe import PLAIN, SHIFT_FLIP

REACH = 2  # pixels
_STREAM = 2**32  # added to the seed, so that these numbers are not those of the order of the batches


def augmentation(
    kind: str, seed: int, part: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return a function of this process's images of a batch and the size of the whole batch, which moves the images.

    Each image is moved by up to `REACH` pixels in either direction, its border repeated, and with `SHIFT_FLIP` every
    second one is mirrored. What is drawn depends on `seed` and the number of images before, and this process takes what
    `part` returns.
    """
    generator = torch.Generator().manual_seed(_STREAM + seed)

    def moved(x: torch.Tensor, size: int) -> torch.Tensor:
        if kind == PLAIN:
            return x
        shifts = torch.randint(-REACH, REACH + 1, (size, 2), generator=generator)
        mirrored = torch.randint(2 if kind == SHIFT_FLIP else 1, (size, 1), generator=generator)
        return shift_and_flip(x, part(shifts).to(x.device), part(mirrored).to(x.device).bool())

    return moved


def shift_and_flip(x: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Return images (N, channels, height, width), channels_last, of which pixel (i, j) is `x`'s (i + dy, j + dx).

    Args:
        x: the images.
        shifts: dy and dx of each image, (N, 2); what lies outside is the nearest pixel of the border.
        mirrored: whether an image is mirrored left to right, after the shift, (N, 1).
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device) + shifts[:, :1]
    columns = torch.arange(width, device=x.device) + shifts[:, 1:]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
