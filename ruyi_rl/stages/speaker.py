"""A family that answers prompts: its branches, its tokenizer and how completions are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ruyi_rl.config import RunConfig
from ruyi_rl.refusal import Refusal
from ruyi_rl.rollout.transformers import end_token_ids
from ruyi_rl.rollout.worker import Request, Sampling, request_seeds
from ruyi_rl.stages.inputs import device, load_family, load_tokenizer
from ruyi_rl.stages.prompts import Prompt
from ruyi_rl.stages.token_stream import TokenStream


class Speaker:
    """The family in `folder` as the `generate` block asks for it.

    Raises:
        Refusal: no family or tokenizer there that can be loaded, or no chat template where a chat is asked for.
    """

    def __init__(self, folder: Path, config: RunConfig):
        options = config.generate
        self.seed, self.system, self.samples = config.seed, options.system, options.samples
        self.tokenizer = load_tokenizer(folder)
        self.family = load_family(folder, config.model).to(device()).eval()
        self.exits = [name for name in self.family.exits if name in (options.exits or self.family.exits)]
        """Names of the exits that answer, shallowest first."""
        self.chat = self.tokenizer.chat_template is not None if options.chat is None else options.chat
        """Whether prompts are rendered by the chat template."""
        self.sampling = Sampling(
            options.max_new_tokens, temperature=options.temperature, top_p=options.top_p, top_k=options.top_k
        )
        self.ends = end_token_ids(self.family, self.tokenizer)
        self._template_kwargs = config.grpo.trainer.get("chat_template_kwargs") or {}
        # A family runs one exit at a time; the branches share its weights and run side by side.
        self._branches = {name: self.family.branch(name, copy=False) for name in self.family.exits}

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens as a branch sees them.

        Raises:
            Refusal: none, more than leave room for the completion, or messages that the template does not take.
        """
        if self.chat:
            ids = self._rendered(prompt)
        elif isinstance(prompt.content, str):
            ids = self.tokenizer(prompt.content)["input_ids"]
        else:
            raise Refusal(prompt.key, f"{_where(prompt)}is a chat, but prompts are taken as text", "generate.chat=true")
        positions, new = self.family.config.max_position_embeddings, self.sampling.max_new_tokens
        if not ids:
            raise Refusal(prompt.key, f"{_where(prompt)}has no tokens", "a text that is not empty")
        if len(ids) + new > positions:
            raise Refusal(
                prompt.key,
                f"{_where(prompt)}has {len(ids)} tokens: with {new} new ones more than the family's {positions} "
                "positions",
                f"{positions - new} tokens at most, or a lower generate.max_new_tokens",
            )
        return ids

    def requests(self, prompt_ids: Sequence[int], exits: Sequence[str]) -> list[Request]:
        """Every sample of one prompt at these exits, exit by exit.

        A seed is decided by the run's, the prompt, the exit and the sample, not by what else is asked.
        """
        names = [exit for exit in exits for _ in range(self.samples)]
        seeds = request_seeds(self.seed, ("generate",), names, [prompt_ids] * len(names))
        return [Request(exit, prompt_ids, seed) for exit, seed in zip(names, seeds)]

    def stream(self, request: Request) -> TokenStream:
        """The completion of a request, to be drawn token by token."""
        return TokenStream(
            self._branches[request.exit],
            self.tokenizer,
            request.prompt_ids,
            self.sampling,
            self.ends,
            request.seed,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _rendered(self, prompt: Prompt) -> list[int]:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                prompt.messages(self.system),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **self._template_kwargs,
            )["input_ids"]
        except (TemplateError, ValueError) as error:
            # Templates refuse roles that they do not know, and an order that they do not like.
            raise Refusal(prompt.key, f"{_where(prompt)}the chat template: {error}", "generate.chat=false") from error


def _where(prompt: Prompt) -> str:
    return f"{prompt.place} " if prompt.place else ""
