"""How full packed rows are, on a data file with the shape of LLaVA-Instruct-150K, beside padded batches."""

import numpy as np

from bench.make_llava150k import RECORDS, records
from bench.table import Bar, Row, show
from bench.timing import timed
from eden.data.packing import efficiency, pack

CHARACTERS_A_TOKEN, IMAGE_TOKENS, MARKS, BATCH = 4, 49, 8, 8
BARS = {2048: Bar(0.97)}


def measure() -> list[Row]:
    """The share of positions that hold a token, for rows of three lengths and for batches of eight."""
    lengths = np.array(
        [
            IMAGE_TOKENS + sum(len(turn["value"]) // CHARACTERS_A_TOKEN + MARKS for turn in record["conversations"])
            for record in records(RECORDS, seed=0)
        ]
    )
    shuffled = np.random.default_rng(0).permutation(lengths)[: len(lengths) // BATCH * BATCH].reshape(-1, BATCH)
    padded = shuffled.sum() / (shuffled.max(1) * BATCH).sum()
    rows = []
    for length in (1024, 2048, 4096):
        packed, seconds = timed(lambda length=length: pack(lengths, length))
        rows.append(
            Row(
                f"share of rows of {length:,} tokens that is full, packed in {seconds:.1f} s",
                efficiency(packed, lengths, length),
                peer=f"batches of {BATCH}, padded to their longest",
                peer_figure=padded,
                bar=BARS.get(length),
            )
        )
    return rows


if __name__ == "__main__":
    show({"packing": measure()})
