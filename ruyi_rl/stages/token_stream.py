"""One completion, token by token, on an exit's branch; several advance together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from ruyi_rl.rollout.transformers import drawing
from ruyi_rl.rollout.worker import Completion, Sampling

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes a part of a character to."""


class TokenStream:
    """A completion in the making. It draws what `TransformersRollout` would, from its own seed.

    Args:
        model: a stock causal LM.
        tokenizer: decodes.
        prompt_ids: token ids, at least one.
        ends: token ids that end the completion.
        seed: decides every draw.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        ends: Sequence[int],
        seed: int,
    ):
        self.model, self.ends, self.limit = model, frozenset(ends), sampling.max_new_tokens
        self.token_ids: list[int] = []
        """The completion so far, its end token included."""
        self.finished = False
        """Whether an end token has come."""
        self.text = ""
        """What the completion decodes to so far, special tokens left out."""
        self.seconds = 0.0
        """Wall time of this stream's own steps."""
        self._decoder = TextDecoder(tokenizer)
        self._processors = drawing(sampling, [seed], model.device)
        self._ids = torch.tensor([list(prompt_ids)], device=model.device)
        self._new, self._cache = self._ids, DynamicCache(config=model.config)

    @property
    def done(self) -> bool:
        return self.finished or len(self.token_ids) >= self.limit

    @property
    def completion(self) -> Completion:
        """What has been drawn so far."""
        return Completion(list(self.token_ids), self.finished)

    @torch.inference_mode()
    def step(self) -> str:
        """Draws one more token; returns the text that it completes, which may be none."""
        start = time.monotonic()
        output = self.model(input_ids=self._new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        scores = self._processors(self._ids, output.logits[:, -1].float())
        self._new = scores.argmax(-1, keepdim=True)
        self._ids = torch.cat([self._ids, self._new], dim=-1)
        token = int(self._new)
        self.token_ids.append(token)
        self.finished = token in self.ends
        piece = self._decoder.add(token)
        if self.done:
            piece += self._decoder.rest()
        self.text += piece
        self.seconds += time.monotonic() - start
        return piece


class TextDecoder:
    """Text from tokens that come one at a time; the pieces together are what all tokens decode to at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        # Tokens from `_context` to `_shown` are shown already; they are decoded again, because a tokenizer may decode
        # a token otherwise at the beginning.
        self._context = self._shown = 0

    def add(self, token: int) -> str:
        """The text that is complete now; held back while it ends within a character."""
        self._ids.append(token)
        text = self._decode(len(self._ids))
        return "" if text.endswith(INCOMPLETE) else self._take(text)

    def rest(self) -> str:
        """What was held back."""
        return self._take(self._decode(len(self._ids)))

    def _take(self, text: str) -> str:
        piece = text[len(self._decode(self._shown)) :]
        if piece:
            self._context, self._shown = self._shown, len(self._ids)
        return piece

    def _decode(self, stop: int) -> str:
        return self.tokenizer.decode(self._ids[self._context : stop], skip_special_tokens=True)


def advance(streams: Mapping[str, TokenStream]) -> Iterator[tuple[str, str]]:
    """Gives each stream one token in turn until all are done; yields (name, piece of text) after each."""
    while waiting := [name for name, stream in streams.items() if not stream.done]:
        for name in waiting:
            yield name, streams[name].step()
