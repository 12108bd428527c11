"""Which refusal means that the request is too long for the model: clients that shorten it act on these words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

STATUSES = frozenset([400, 413, 422])

# The ``code`` or ``type`` of the error, where a provider has one for it.
WORDS = frozenset(
    [
        "context_length_exceeded",  # OpenAI, Azure, Groq, Cerebras, xAI
        "exceed_context_size_error",  # llama.cpp
        "model_max_prompt_tokens_exceeded",  # GitHub Models
        "request_too_large",  # Anthropic, with 413
    ]
)

# What the providers write, by the one that writes it. A pattern is a part of the reason, in letters of any case.
PHRASES = {
    "OpenAI": r"exceeds? the context window|maximum context length|input tokens exceed the configured limit",
    "Anthropic": r"prompt is too long|exceed context limit|request exceeds the maximum size",
    "Google Gemini": r"input token count .{0,40}exceeds the maximum number of tokens",
    "Groq": r"request too large for model|reduce the length of the messages",  # Cerebras too
    "Mistral": r"too large for model with \d+ maximum context length",
    "vLLM": r"longer than the maximum model length|maximum model length of \d+",
    "SGLang": r"longer than the model's context length",
    "llama.cpp": r"exceeds the available context size",
    "Ollama": r"input length exceeds (?:the )?(?:maximum )?context length",
    "LM Studio": r"tokens to keep from the initial prompt is greater than the context length|"
    r"when context the overflows",
    "xAI": r"maximum prompt length is \d+",
    "Together": r"(?:`?inputs`? tokens \+ `?max_new_tokens`?|`?inputs`?) must (?:be <=|have less than) \d+",
    "Fireworks": r"prompt is too long: \d+, model maximum context length",
    "Amazon Bedrock": r"input is too long for requested model",
    "Cohere": r"too many tokens: ",
    "Moonshot": r"exceeded model token limit",
    "MiniMax": r"context window exceeds limit",
    "Alibaba": r"range of input length should be",
    "z.ai": r"prompt exceeds max length",
}
_PHRASES = re.compile("|".join(PHRASES.values()), re.IGNORECASE)
MOST_SEARCHED = 4096  # of a reason, which may repeat the request


def is_context_overflow(status: int | None, words: Sequence[str], reason: str | None) -> bool:
    """Whether a refusal with this status, these words and this reason is about the length of the request."""
    if status not in STATUSES:
        return False
    return not WORDS.isdisjoint(words) or _PHRASES.search((reason or "")[:MOST_SEARCHED]) is not None
