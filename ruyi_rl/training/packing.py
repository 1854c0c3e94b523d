"""From padded rows to packs and back: *ragged depth, shared prefix*.

A pack holds whole prompts, each once, and then their completions, the deepest exit's first:

    [ prompt 0 | prompt 1 | large: 0 0 1 1 | medium: 0 0 1 1 | small: 0 0 1 1 ]        (G = 2)

What predicts nothing is not computed: a completion's last token, and padding. For P prompt tokens, exits of depth d_e
and G completions of R tokens each, the layers compute P·D + Σ_e G·(R-1)·d_e token-layers a prompt, where D is the
number of layers of the whole family, instead of the Σ_e G·(P+R)·d_e of one model a branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ruyi_rl.family.pack import Pack, Scored


@dataclass(frozen=True)
class PackedRows:
    """Rows of a padded batch as one pack, and the way back."""

    input_ids: torch.Tensor
    """(1, tokens) int64."""
    position_ids: torch.Tensor
    """(1, tokens) int64: from 0 in a prompt, going on in its completions."""
    pack: Pack
    """Segments, and what is scored of each exit."""
    places: Mapping[str, torch.Tensor]
    """Exit -> (scored tokens,): where each stands in the flattened (rows, length) result."""
    shape: tuple[int, int]
    """(rows, length) of the result."""

    def unpack(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Exit -> (scored tokens,) brought back to (rows, length); 0 where nothing was scored."""
        found = torch.cat([values[name] for name in self.places])
        rows, length = self.shape
        return (
            found.new_zeros(rows * length)
            .index_copy(0, torch.cat(list(self.places.values())), found)
            .view(rows, length)
        )


def pack_rows(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    prompt_numbers: torch.Tensor,
    exit_ids: torch.Tensor,
    exits: Sequence[str],
) -> PackedRows:
    """Lay out rows of prompts and completions, padded on whichever side.

    Args:
        input_ids: (rows, length): prompts and, in the last `completion_length` columns, completions.
        attention_mask: (rows, length): 1 for tokens.
        completion_length: columns of the completions, and of the results.
        prompt_numbers: (rows,): rows of one number have one prompt.
        exit_ids: (rows,): index into `exits`.
        exits: names, deepest first.

    Raises:
        ValueError: a prompt without tokens, which nothing could predict a completion from.
    """
    rows, columns = input_ids.shape
    width = columns - completion_length
    mask = attention_mask.bool().cpu()
    numbers, owners = prompt_numbers.tolist(), exit_ids.tolist()
    grid = torch.arange(rows * columns).view(rows, columns)
    prompts = {number: grid[row, :width][mask[row, :width]] for row, number in enumerate(numbers)}
    if any(len(prompt) == 0 for prompt in prompts.values()):
        raise ValueError("a prompt without tokens: there is nothing to predict its completions from")
    shared = {number: place for place, number in enumerate(prompts)}
    sources = list(prompts.values())
    positions = [torch.arange(len(prompt)) for prompt in sources]
    above, owned = [-1] * len(sources), {}
    ends = list(accumulate(map(len, sources)))
    scored, places = {}, {}
    for exit, name in enumerate(exits):
        own, result = [], []
        start, count = ends[-1], 0
        for row in range(rows):
            if owners[row] != exit:
                continue
            tokens = grid[row, width:][mask[row, width:]]
            if len(tokens) == 0:
                continue
            prompt = shared[numbers[row]]
            # The prompt's last token predicts the first token, each token the next; the last predicts none.
            own.append(torch.tensor([ends[prompt] - 1]))
            if len(tokens) > 1:
                own.append(torch.arange(start, start + len(tokens) - 1))
                sources.append(tokens[:-1])
                positions.append(torch.arange(len(tokens) - 1) + len(prompts[numbers[row]]))
                above.append(prompt)
                start, count = start + len(tokens) - 1, count + 1
            result.append(tokens)
        owned[name] = count
        targets = torch.cat(result) if result else grid.new_empty(0)
        row, column = targets // columns, targets % columns - width
        scored[name] = (torch.cat(own) if own else grid.new_empty(0), targets)
        places[name] = row * completion_length + column
    device, flat = input_ids.device, input_ids.flatten()
    return PackedRows(
        flat[torch.cat(sources).to(device)][None],
        torch.cat(positions).to(device)[None],
        Pack(
            lengths=tuple(map(len, sources)),
            prompts=tuple(above),
            shared=len(prompts),
            owned=owned,
            scored={
                name: Scored(source.to(device), flat[target.to(device)]) for name, (source, target) in scored.items()
            },
        ),
        {name: place.to(device) for name, place in places.items()},
        (rows, completion_length),
    )


def pack_sequences(
    input_ids: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor, segments: torch.Tensor, exits: Sequence[str]
) -> PackedRows:
    """Lay out sequences that every exit runs: joint SFT.

    Args:
        input_ids: (rows, length).
        tokens: (rows, length): whether there is a token and no padding.
        labels: (rows, length): -100 where a token does not count; position t is predicted from t - 1.
        segments: (rows, length): positions that restart at 0 where a row holds several sequences one after the other.
        exits: names, deepest first.

    Returns:
        The pack; its results are (rows, length - 1), as `log_probs` of a padded call.
    """
    rows, columns = input_ids.shape
    kept = torch.nonzero(tokens.bool().flatten()).flatten()
    positions = segments.flatten()[kept]
    row = kept // columns
    begins = torch.ones_like(kept, dtype=torch.bool)
    begins[1:] = (row[1:] != row[:-1]) | (positions[1:] == 0)
    starts = torch.nonzero(begins).flatten()
    lengths = torch.diff(starts, append=starts.new_tensor([len(kept)])).tolist()
    own = torch.arange(len(kept), device=kept.device) - starts.repeat_interleave(
        torch.tensor(lengths, device=kept.device)
    )
    wanted = (labels.flatten()[kept] != -100) & ~begins
    targets = torch.nonzero(wanted).flatten()
    scored = Scored(targets - 1, labels.flatten()[kept[targets]])
    place = kept[targets]
    places = place // columns * (columns - 1) + place % columns - 1
    return PackedRows(
        input_ids.flatten()[kept][None],
        own[None],
        Pack(
            lengths=tuple(lengths),
            prompts=(-1,) * len(lengths),
            shared=len(lengths),
            owned=dict.fromkeys(exits, 0),
            scored=dict.fromkeys(exits, scored),
        ),
        dict.fromkeys(exits, places),
        (rows, columns - 1),
    )
