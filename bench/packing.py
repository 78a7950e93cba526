"""How full packed rows are, on a data file with the shape of LLaVA-Instruct-150K, beside padded batches."""

import time

import numpy as np

from bench.machine import describe
from bench.make_llava150k import RECORDS, records
from eden.data.packing import efficiency, pack

CHARACTERS_A_TOKEN, IMAGE_TOKENS, MARKS, BATCH = 4, 49, 8, 8


def main() -> None:
    """Prints the share of places that hold a token, for rows of three lengths and for batches of eight."""
    lengths = np.array(
        [
            IMAGE_TOKENS + sum(len(turn["value"]) // CHARACTERS_A_TOKEN + MARKS for turn in record["conversations"])
            for record in records(RECORDS, seed=0)
        ]
    )
    print(f"{len(lengths):,} samples of {lengths.mean():.0f} tokens on average, {lengths.max():,} at most (estimated)")
    for row_length in (1024, 2048, 4096):
        started = time.perf_counter()
        rows = pack(lengths, row_length)
        seconds = time.perf_counter() - started
        print(f"rows of {row_length:5,}   {efficiency(rows, lengths, row_length):.4f} full   packed in {seconds:.1f} s")
    shuffled = np.random.default_rng(0).permutation(lengths)[: len(lengths) // BATCH * BATCH].reshape(-1, BATCH)
    print(f"padded, {BATCH} a batch  {shuffled.sum() / (shuffled.max(1) * BATCH).sum():.4f} full")


if __name__ == "__main__":
    print(f"machine: {describe()}")
    main()
