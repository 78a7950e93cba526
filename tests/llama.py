"""Asks llama.cpp; run as a script in an environment that has llama-cpp-python, and nothing of Eden.

    python llama.py request.json reply.json

The request names `model` and `mmproj`, the files, and `n_ctx`, and asks for what it needs of:
`texts`, each with whether control tokens are parsed -> `ids`; `rows` of ids -> `logits` of each position;
`images`, PNG in base64 -> `embeddings` [N,D]; `questions`, each an image and words -> `answers`, greedy.
"""

import base64
import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler

F32 = 0


def main(request: Path, reply: Path) -> None:
    asked = json.loads(request.read_text())
    handler = MTMDChatHandler(asked["mmproj"], verbose=False) if "mmproj" in asked else None
    llama = llama_cpp.Llama(
        asked["model"],
        n_ctx=asked["n_ctx"],
        chat_handler=handler,
        logits_all="rows" in asked,
        type_k=F32,
        type_v=F32,
        verbose=False,
    )
    texts = [(text.encode(), parse) for text, parse in asked.get("texts", [])]
    said = {
        "ids": [llama.tokenize(text, add_bos=False, special=parse) for text, parse in texts],
        "logits": [logits(llama, row) for row in asked.get("rows", [])],
        "embeddings": [embeddings(llama, handler, image) for image in asked.get("images", [])],
        "answers": [answer(llama, image, words) for image, words in asked.get("questions", [])],
    }
    reply.write_text(json.dumps(said))


def logits(llama: llama_cpp.Llama, row: list[int]) -> list[list[float]]:
    llama.reset()
    llama.eval(row)
    return llama.scores[: len(row)].tolist()


def embeddings(llama: llama_cpp.Llama, handler: MTMDChatHandler, image: str) -> list[list[float]]:
    """What stands in the prompt for an image."""
    handler._init_mtmd_context(llama)
    bitmap = handler._create_bitmap_from_bytes(base64.b64decode(image))
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


def answer(llama: llama_cpp.Llama, image: str, words: str) -> str:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": words},
    ]
    reply = llama.create_chat_completion([{"role": "user", "content": parts}], temperature=0, repeat_penalty=1.0)
    return reply["choices"][0]["message"]["content"].strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
