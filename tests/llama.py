"""Asks llama.cpp; run as a script in an environment that has llama-cpp-python.

    python llama.py request.json reply.json

The request names `model` and, for pictures, `mmproj`, the files, and `n_ctx`, and asks for what it needs of:
`texts`, each with whether control tokens are parsed -> `ids`; `rows` of ids -> `logits` of each position;
`images`, paths -> `embeddings` [N,D]; `questions`, each an image and words -> `answers`, as `eden export --check` has.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp

from eden.export.llama_cpp_process import answer, open_model

F32 = 0


def main(request: Path, reply: Path) -> None:
    asked = json.loads(request.read_text())
    options = {"n_ctx": asked["n_ctx"], "logits_all": "rows" in asked, "type_k": F32, "type_v": F32}
    options |= {"n_threads": 1, "n_threads_batch": 1}
    llama = open_model(asked["model"], asked.get("mmproj"), **options)
    texts = [(text.encode(), parse) for text, parse in asked.get("texts", [])]
    said = {
        "ids": [llama.tokenize(text, add_bos=False, special=parse) for text, parse in texts],
        "logits": [logits(llama, row) for row in asked.get("rows", [])],
        "embeddings": [embeddings(llama, Path(image)) for image in asked.get("images", [])],
        "answers": [answer(llama, Path(image), words, 64) for image, words in asked.get("questions", [])],
    }
    reply.write_text(json.dumps(said))


def logits(llama: llama_cpp.Llama, row: list[int]) -> list[list[float]]:
    llama.reset()
    llama.eval(row)
    return llama.scores[: len(row)].tolist()


def embeddings(llama: llama_cpp.Llama, image: Path) -> list[list[float]]:
    """What stands in the prompt for an image."""
    handler: Any = llama.chat_handler
    handler._init_mtmd_context(llama)
    bitmap = handler._create_bitmap_from_bytes(image.read_bytes())
    marker = mtmd_cpp.mtmd_default_marker()
    text, chunks = mtmd_cpp.mtmd_input_text(), mtmd_cpp.mtmd_input_chunks_init()
    text.text, text.text_len, text.parse_special = marker, len(marker), True
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(handler.mtmd_ctx, chunks, ctypes.byref(text), bitmaps, 1) == 0
    assert mtmd_cpp.mtmd_input_chunks_size(chunks) == 1
    chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, 0)
    assert mtmd_cpp.mtmd_encode_chunk(handler.mtmd_ctx, chunk) == 0
    shape = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), llama.n_embd()
    return np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(handler.mtmd_ctx), shape).tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
