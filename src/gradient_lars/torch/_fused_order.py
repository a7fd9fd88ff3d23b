"""The order in which the programs of the hook's kernel take their work: sums of squares, and then the rescaling."""

from collections import deque
from collections.abc import Sequence

from gradient_lars.torch._fused_tables import MOST_CHUNKS

# An item is the layer's place, then this many bits of the chunk's number, then one that says whether to rescale.
CHUNK_BITS = (MOST_CHUNKS - 1).bit_length()


def tickets(chunks: Sequence[int], lookahead: int) -> list[int]:
    """Return the items of one step: of every layer its sums, and `lookahead` other sums later its rescaling.

    A layer is rescaled as soon as its norms are known, while its gradient and its weights may still be in the L2 cache:
    what has to stay there is one layer and the sums taken meanwhile, so that nobody waits for the layer's last ones.

    Layers and the chunks to rescale are taken backwards. Of a layer that is larger than the cache, the end is still in
    there when its sums are done; and of all layers, the first ones when the optimizer's own step begins with them.

    Args:
        chunks: number of chunks of each layer, at least 1 and at most `MOST_CHUNKS`.
        lookahead: about as many items as are being worked on while a program takes the next one.
    """
    items: list[int] = []
    waiting: deque[tuple[int, int]] = deque()
    sums = 0
    for t in reversed(range(len(chunks))):
        for c in range(chunks[t]):
            while waiting and waiting[0][0] <= sums:
                items += _rescaling(waiting.popleft()[1], chunks)
            items.append(t << CHUNK_BITS + 1 | c << 1)
            sums += 1
        waiting.append((sums + lookahead, t))
    for _, t in waiting:
        items += _rescaling(t, chunks)
    return items


def _rescaling(t: int, chunks: Sequence[int]) -> list[int]:
    return [t << CHUNK_BITS + 1 | c << 1 | 1 for c in reversed(range(chunks[t]))]
