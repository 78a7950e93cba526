"""Control tokens by their looks: `eden check` has no model whose tokenizer it could ask."""

import re

CONTROL_TOKEN = re.compile(r"<\|[^\s<>|]{1,40}\|>|</?s>|<unk>")
"""What no data set may contain: tokens with bars, as all families have them, and the others of Phi's."""
CONTROL_WORD = re.compile(
    r"</?(?:think|tool_call|tool_response)>|<(?:repo_?name|file_sep|filename|gh_stars|empty_output)>"
    r"|<issue_(?:start|comment|closed)>|<jupyter_(?:start|text|code|output|script)>"
)
"""What is a control token to SmolLM2, SmolLM3 or Qwen3, and a word like others to Phi: it is counted and no fault."""
