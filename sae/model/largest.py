"""The n largest numbers of every column of a table that comes in blocks of rows, on a CPU."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numba import njit, prange

COLUMNS = 512  # that one thread looks at together, so that their largest numbers stay near


@njit(parallel=True, cache=True)
def keep_largest(
    block: Float[np.ndarray, "rows columns"],
    scales: Float[np.ndarray, " rows"],
    first: int,
    largest: Float[np.ndarray, "columns n"],
    row_numbers: Int[np.ndarray, "columns n"],
) -> None:
    """Puts block / scales[:, None], whose rows are numbered from `first` on, in its places among the `largest` of each column.

    `largest` falls along each line; of equal numbers the one that came first stays in front. A column has few newcomers once
    it has seen many rows, so nearly all of the work is one comparison for each number.
    """
    n_columns, n = largest.shape
    for part in prange((n_columns + COLUMNS - 1) // COLUMNS):
        for row in range(len(block)):
            for column in range(part * COLUMNS, min(n_columns, (part + 1) * COLUMNS)):
                value = block[row, column] / scales[row]
                if not value > largest[column, n - 1]:
                    continue
                place = n - 1
                while place > 0 and value > largest[column, place - 1]:
                    largest[column, place] = largest[column, place - 1]
                    row_numbers[column, place] = row_numbers[column, place - 1]
                    place -= 1
                largest[column, place] = value
                row_numbers[column, place] = first + row
