"""Whether an answer can be held to a JSON schema; judged in a process of its own.

A schema is a stranger's program: compiling it may take minutes or all memory, or overflow the stack, which ends a
process without an exception. So it is tried first where that harms nobody, with little of each.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import llguidance

LONGEST = 32_768
"""Characters of a schema: what an answer may hold is looked through for each of its tokens."""
CPU_SECONDS = 2
SECONDS = 30.0
"""However busy the machine is."""
MEMORY = 2**30
STACK = 2**21
"""Bytes, a quarter of what a thread has that compiles the schema again."""

LIMITS = llguidance.LLParserLimits(verbose_errors=False)
TOO_COMPLEX = "the schema is too complex"


def to_grammar(schema: str) -> str:
    """The grammar of a schema, with JSON as `json.dumps` writes it. A keyword that is not supported is refused.

    Raises:
        ValueError: it is not JSON, or nested too deep.
    """
    return llguidance.LLMatcher.grammar_from_json_schema(
        schema,
        # White space without a bound is what a small model would go on writing for ever.
        overrides={
            "whitespace_flexible": False,
            "item_separator": ", ",
            "key_separator": ": ",
            "lenient": False,
            "coerce_one_of": False,
        },
    )


def fault_of(schema: str) -> str | None:
    """Why no answer can be held to a schema, or None. It may take long, and it may end the process."""
    try:
        fault = llguidance.LLMatcher.validate_grammar(to_grammar(schema), limits=LIMITS)
    except ValueError as error:
        fault = str(error)
    if fault:
        return " ".join(fault.split())
    return None if _can_end(json.loads(schema)) else "every answer that fits would have to hold another, without end"


class Judge:
    """Says the same by another process, within bounds; it is started when it is first asked, or gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def fault_of(self, schema: str) -> str | None:
        """Why no answer can be held to a schema (JSON in one line), or None. Any thread may ask."""
        if len(schema) > LONGEST:
            return f"the schema has {len(schema):,} characters, the limit is {LONGEST:,}"
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            too_late = threading.Timer(SECONDS, process.kill)
            too_late.start()
            try:
                print(schema, file=process.stdin, flush=True)
                answer = process.stdout.readline()
            except OSError:
                answer = ""
            finally:
                too_late.cancel()
            if not answer:  # it was ended, or came to its own end
                process.kill()
                process.wait()
        return answer.strip() or None if answer else TOO_COMPLEX

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            modules = os.pathsep.join(map(os.path.abspath, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env=os.environ | {"PYTHONPATH": modules, "PYTHONUTF8": "1"},
            )
        return self._process


def _can_end(schema: Any) -> bool:
    """Whether a finite value may fit: the least fixed point over the references within the schema."""
    targets = {ref: _resolved(schema, ref) for ref in _references(schema)}
    finite = {ref for ref, target in targets.items() if target is None}  # not to be followed here

    def ends(node: Any) -> bool:
        if not isinstance(node, dict):
            return True
        if node.get("$ref", None) in targets.keys() - finite or not all(map(ends, node.get("allOf", ()))):
            return False
        if any(not any(map(ends, node[either])) for either in ("anyOf", "oneOf") if either in node):
            return False
        if node.get("type") == "object":
            members, others = node.get("properties", {}), node.get("additionalProperties")
            return all(ends(members.get(name, others)) for name in node.get("required", ()))
        if node.get("type") == "array":
            least, first = node.get("minItems", 0), node.get("prefixItems", [])
            return all(map(ends, first[:least])) and (least <= len(first) or ends(node.get("items")))
        return True

    while found := {ref for ref in targets.keys() - finite if ends(targets[ref])}:
        finite |= found
    return ends(schema)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _references(child)


def _resolved(schema: Any, reference: str) -> Any:
    """What `#/$defs/name` stands for; None for a reference of another kind, or to nothing."""
    root, *steps = unquote(reference).split("/")
    if root != "#":
        return None
    node = schema
    try:
        for step in steps:
            node = node[int(step)] if isinstance(node, list) else node[step.replace("~1", "/").replace("~0", "~")]
    except (LookupError, TypeError, ValueError):
        return None
    return node


def main() -> None:
    """Answers each schema on standard input with a line: what is wrong with it, or nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; this ends with its input

    def answer() -> None:
        for schema in sys.stdin:
            _limit_what_is_used()
            print(fault_of(schema) or "", flush=True)

    threading.stack_size(STACK)
    thread = threading.Thread(target=answer)
    thread.start()
    thread.join()


def _limit_what_is_used() -> None:
    """Ends this process once it has used too much for one more schema; not every system has such limits."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        seconds = math.ceil(time.process_time()) + CPU_SECONDS
        for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY)):
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    main()
