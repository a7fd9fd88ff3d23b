"""Shifted and mirrored images, pixel by pixel, and the draws behind them."""

import numpy as np
import pytest
import torch

from gradient_lars.cli.augment import REACH, augmentation, shift_and_flip


def expected_image(image, dy, dx, mirrored):
    """The image moved with loops over its pixels; image is (channels, height, width)."""
    _, height, width = image.shape
    moved = np.empty_like(image)
    for i in range(height):
        for j in range(width):
            source = (width - 1 - j) if mirrored else j
            moved[:, i, j] = image[:, np.clip(i + dy, 0, height - 1), np.clip(source + dx, 0, width - 1)]
    return moved


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_comes_from_where_it_should(channels):
    x = torch.randn(6, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    shifts = torch.tensor([[0, 0], [2, 0], [-2, 1], [0, -2], [1, 2], [-1, -1]])
    mirrored = torch.tensor([[False], [False], [True], [True], [False], [True]])
    found = shift_and_flip(x.to(memory_format=torch.channels_last), shifts, mirrored)
    for image, own, shift, flip in zip(found, x, shifts.tolist(), mirrored[:, 0].tolist(), strict=True):
        np.testing.assert_array_equal(image.numpy(), expected_image(own.numpy(), *shift, flip))
    assert found.is_contiguous(memory_format=torch.channels_last)


def moved_images(kind, seed, part=lambda rows: rows, n=64):
    x = torch.arange(35.0).reshape(1, 1, 5, 7).expand(n, -1, -1, -1)
    move = augmentation(kind, seed, part)
    return [move(part(x), n) for _ in range(2)]


def test_draws_are_those_of_the_seed_and_differ_between_batches():
    first, second = moved_images("shift-flip", 3)
    again, _ = moved_images("shift-flip", 3)
    other, _ = moved_images("shift-flip", 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_processes_draw_what_one_would():
    whole = moved_images("shift-flip", 3)
    parts = [moved_images("shift-flip", 3, lambda rows, rank=rank: rows.tensor_split(3)[rank]) for rank in range(3)]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_shifts_reach_both_ways_and_only_flips_mirror():
    shifted, flipped = moved_images("shift", 0, n=2000)[0], moved_images("shift-flip", 0, n=2000)[0]
    centre = shifted[:, 0, 2, 3]
    vertical, horizontal = centre // 7 - 2, centre % 7 - 3
    for moves in (vertical, horizontal):
        assert set(moves.tolist()) == set(range(-REACH, REACH + 1))
    rising = [(images[:, 0, 2, 4] > images[:, 0, 2, 2]).double().mean().item() for images in (shifted, flipped)]
    assert rising[0] == 1
    assert rising[1] == pytest.approx(0.5, abs=0.05)


def test_none_is_the_images_themselves():
    x = torch.zeros(2, 1, 5, 7)
    assert augmentation("none", 0, lambda rows: rows)(x, 2) is x
