"""Asks llama.cpp, in a process of its own: it may abort, and brings threads of its own. Needs nothing of Eden.

    python llama_cpp_process.py request.json reply.json

The request names `model` and `mmproj`, the files, `n_threads`, and `questions`: each the path of a picture (PNG, JPEG)
and words, asked alone and in order, with `max_new_tokens` for each answer. The reply is a list of what `answer` gives.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(request: Path, reply: Path) -> None:
    """Reads the one file and writes the other."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    threads = dict.fromkeys(("n_threads", "n_threads_batch"), asked["n_threads"])
    llama = open_model(asked["model"], asked["mmproj"], **threads)
    said = [answer(llama, Path(image), words, asked["max_new_tokens"]) for image, words in asked["questions"]]
    reply.write_text(json.dumps(said), encoding="utf-8")


def open_model(model: str, mmproj: str | None = None, **options: Any) -> Any:
    """A `llama_cpp.Llama`.

    Args:
        model: the language model's file.
        mmproj: that of its vision, if pictures are to be asked about.
        options: of `llama_cpp.Llama`; without `n_ctx` the context is as long as the file says.
    """
    import llama_cpp
    from llama_cpp.llama_chat_format import MTMDChatHandler

    handler = None if mmproj is None else MTMDChatHandler(mmproj, verbose=False)
    return llama_cpp.Llama(model, **{"n_ctx": 0, "chat_handler": handler, "verbose": False} | options)


def answer(llama: Any, image: Path, words: str, max_new_tokens: int) -> dict[str, Any]:
    """The likeliest answer to a question about a picture.

    Returns:
        its `ids`, without the token that ends it; its `text`; and the `seconds` that it took, the picture included.
    """
    parts = [{"type": "image_url", "image_url": {"url": image.resolve().as_uri()}}, {"type": "text", "text": words}]
    started = time.perf_counter()
    reply = llama.create_chat_completion(
        [{"role": "user", "content": parts}],
        temperature=0,
        repeat_penalty=1.0,
        max_tokens=max_new_tokens + 1,  # the last token is never read, and only what was read is told
    )
    seconds = time.perf_counter() - started
    ids = llama.input_ids[reply["usage"]["prompt_tokens"] : llama.n_tokens].tolist()
    return {"ids": ids, "text": reply["choices"][0]["message"]["content"].strip(), "seconds": seconds}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
