"""The order of the hook's work: nobody can wait forever, and little time passes between two readings of a layer."""

import pytest

from gradient_lars.torch._fused_order import CHUNK_BITS, tickets
from gradient_lars.torch._fused_tables import MOST_CHUNKS

CHUNKS = [
    [1],
    [3],
    [1, 1, 1],
    [5, 1, 7, 2],
    [40, 1, 1, 30, 2],
    [1] * 50,
    [MOST_CHUNKS, 1, MOST_CHUNKS],
]


def unpacked(items):
    """Return layer, chunk and whether it is rescaled, for each item."""
    return [(item >> CHUNK_BITS + 1, item >> 1 & (1 << CHUNK_BITS) - 1, bool(item & 1)) for item in items]


@pytest.mark.parametrize("lookahead", [0, 1, 3, 17, 10_000])
@pytest.mark.parametrize("chunks", CHUNKS, ids=lambda chunks: f"{len(chunks)} layers, {sum(chunks)} chunks")
def test_every_chunk_is_summed_and_then_rescaled(chunks, lookahead):
    items = unpacked(tickets(chunks, lookahead))
    everything = {(t, c, rescale) for t, count in enumerate(chunks) for c in range(count) for rescale in (False, True)}
    assert len(items) == len(everything)
    assert set(items) == everything
    # An item waits for lower tickets only, whatever number of programs take them.
    summed = [0] * len(chunks)
    for t, _, rescale in items:
        if rescale:
            assert summed[t] == chunks[t]
        else:
            summed[t] += 1


@pytest.mark.parametrize("lookahead", [0, 1, 3, 17])
@pytest.mark.parametrize("chunks", CHUNKS, ids=lambda chunks: f"{len(chunks)} layers, {sum(chunks)} chunks")
def test_a_layer_is_rescaled_so_many_sums_after_its_last(chunks, lookahead):
    items = unpacked(tickets(chunks, lookahead))
    between = {}
    sums = 0
    for t, c, rescale in items:
        if not rescale:
            sums += 1
            between[t] = sums
        elif c == chunks[t] - 1:
            # Backwards: the last chunk is the first to be rescaled. At the end there are no sums left to take.
            assert sums - between[t] == lookahead or sums == sum(chunks)
    assert [t for t, c, rescale in items if rescale and c == 0] == list(reversed(range(len(chunks))))


def test_memory_of_the_order_and_of_the_sums():
    # Two items and two sums of 4 bytes for 8192 entries of 4 bytes: below a thousandth of the parameters.
    assert (2 * 4 + 2 * 4) / (8192 * 4) <= 1e-3
    assert max(tickets([MOST_CHUNKS] * 3, 5)) < 1 << CHUNK_BITS + 3
