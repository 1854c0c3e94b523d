"""From a file's row to ours: field mapping, templates, gold answers. Imports no torch and no datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ruyi_rl.data.mapping import STANDARD, Mapping
from ruyi_rl.refusal import Refusal

ROLES = ("system", "user", "assistant", "tool")
# A completion, a conversation or a text belongs to some stages only; every other declared field must be in every row.
_STAGE_FIELDS = {"completion", "messages", "text"}
_MISSING = object()

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class MappedRow:
    """One row after mapping."""

    place: str
    """File and line, as messages name it."""
    key: str
    """The prompt (or conversation, or text) as one string: equal keys must not lie on both sides of a split."""
    row: dict[str, Any] | None
    """Our fields; None where the row is left out for its empty answer."""


def map_rows(
    records: Iterable[tuple[str, dict[str, Any]]],
    mapping: Mapping,
    stage: str | None,
    train: bool,
    needs: Iterable[str] = (),
) -> Iterator[MappedRow]:
    """Map the rows of one split.

    Args:
        records: (place, row) pairs, see `read_records`.
        mapping: the compiled options.
        stage: `sft` makes {prompt, completion} or {messages}, `pretrain` {text}, any other stage {prompt}; besides them
            `answer`, the other declared fields and all fields that no mapping used. `prompt`, `completion` and
            `messages` are lists of {"role", "content"}.
        train: whether this is the training split; held-out rows need no completion.
        needs: our names of further fields that every row must have (what a reward reads).

    Raises:
        Refusal: a row lacks a needed field, or its value cannot be used; the message names file and line.
    """
    required = (mapping.declared | set(needs)) - _STAGE_FIELDS
    for number, (place, values) in enumerate(records):
        row = _Row(place, values, mapping)
        if number == 0:
            # Rewards alone know what they read; what a file has of these in its first row, it must have in all.
            required |= {name for name in ("answer", "tests") if row.has(name)}
        yield _map_row(row, stage, train, required)


def _map_row(row: _Row, stage: str | None, train: bool, required: set[str]) -> MappedRow:
    for name in sorted(required):
        if not row.has(name) and not (name == "prompt" and row.mapping.prompt_template):
            raise row.lacking(name)
    answered = row.read_answer()
    prompt, messages = row.prompt(), row.messages()
    unit = prompt or messages or row.values.get("text")
    key = json.dumps(unit, sort_keys=True, ensure_ascii=False, default=str)
    if not answered:
        return MappedRow(row.place, key, None)
    out = row.other_fields()
    if stage == "pretrain":
        out["text"] = _text(row, prompt, messages, train)
    elif stage == "sft" and train:
        out |= _demonstration(row, prompt, messages)
    else:
        if prompt is None and messages is not None:
            prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if not prompt:
            raise row.lacking("prompt")
        out["prompt"] = prompt
    return MappedRow(row.place, key, out)


def _demonstration(row: _Row, prompt: Messages | None, messages: Messages | None) -> dict[str, Messages]:
    completion = row.completion()
    if prompt is not None and completion is not None:
        return {"prompt": prompt, "completion": completion}
    if messages is None:
        raise row.lacking("prompt" if prompt is None else "completion")
    if not any(message["role"] == "assistant" for message in messages):
        raise row.refusal("messages", "has no assistant message to learn from")
    return {"messages": messages}


def _text(row: _Row, prompt: Messages | None, messages: Messages | None, train: bool) -> str:
    text = row.values.get("text")
    if text is None:
        turns = messages
        if prompt is not None:
            completion = row.completion()
            if completion is None and train:
                raise row.lacking("completion")
            turns = prompt + (completion or [])
        if turns is None:
            raise row.lacking("text")
        text = "\n".join(message["content"] for message in turns)
    if not isinstance(text, str) or not text.strip():
        raise row.refusal("text", f"has no text but {_short(text)}")
    return text


class _Row:
    """One row while it is mapped: its own fields, our view of them, and where it stands."""

    def __init__(self, place: str, fields: dict[str, Any], mapping: Mapping):
        self.place, self.fields, self.mapping = place, fields, mapping
        found = ((ours, _lookup(fields, theirs)) for ours, theirs in mapping.names.items())
        self.values = {ours: value for ours, value in found if value is not _MISSING}
        self.known = dict(fields)

    def has(self, name: str) -> bool:
        return name in self.values or (name not in self.mapping.names and name in self.fields)

    def read_answer(self) -> bool:
        """Put the gold answer in `values` and `known`; False where the row is to be left out for an empty one."""
        if "answer" not in self.values:
            return True
        value, pattern = self.values["answer"], self.mapping.answer_pattern
        if value is None or (isinstance(value, str) and not value.strip()):
            if self.mapping.empty_answer == "drop":
                return False
            if self.mapping.empty_answer == "keep":
                self.values["answer"] = self.known["answer"] = None
                return True
            allowed = "data.empty_answer=drop leaves such rows out and counts them, =keep leaves them to other rewards"
            raise self.refusal("answer", f"has an empty answer: {value!r}", allowed)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if pattern is not None:
            match = pattern.search(value) if isinstance(value, str) else None
            if match is None:
                problem = f"{self.place}: the answer {_short(value)} does not match"
                raise Refusal("data.answer_pattern", problem, f"the pattern is {pattern.pattern!r}")
            groups = {name: text or "" for name, text in match.groupdict().items()}
            value = groups["answer"] if "answer" in groups else match.group(1)
            self.known |= groups
        self.values["answer"] = self.known["answer"] = value
        return True

    def prompt(self) -> Messages | None:
        if self.mapping.prompt_template:
            value = self._format("prompt_template", self.mapping.prompt_template)
        elif "prompt" in self.values:
            value = self.values["prompt"]
        else:
            return None
        return self._with_system(self._chat(value, "prompt", "user"))

    def messages(self) -> Messages | None:
        if "messages" not in self.values:
            return None
        return self._with_system(self._chat(self.values["messages"], "messages", "user"))

    def completion(self) -> Messages | None:
        if self.mapping.completion_template:
            value = self._format("completion_template", self.mapping.completion_template)
        elif "completion" in self.values:
            value = self.values["completion"]
        else:
            return None
        messages = self._chat(value, "completion", "assistant")
        strip = self.mapping.completion_strip
        return [m | {"content": strip.sub("", m["content"])} for m in messages] if strip else messages

    def other_fields(self) -> dict[str, Any]:
        """The answer, the other declared fields, and the row's own fields that are not mapped to one of ours."""
        # A column whose name TRL reads must mean what TRL takes it for: no raw field under a standard name.
        used = {theirs for ours, theirs in self.mapping.names.items() if ours in self.values} | set(STANDARD)
        out = {name: value for name, value in self.fields.items() if name not in used}
        out |= {name: self.values[name] for name in self.mapping.declared - set(STANDARD)}
        return out | ({"answer": self.values["answer"]} if "answer" in self.values else {})

    def lacking(self, name: str) -> Refusal:
        return self.refusal(name, f"has no field {self.mapping.names.get(name, name)!r}", self._own_fields(self.fields))

    def refusal(self, name: str, problem: str, allowed: str = "") -> Refusal:
        return Refusal(f"data.fields.{name}", f"{self.place} {problem}", allowed)

    def _chat(self, value: Any, name: str, role: str) -> Messages:
        """A text as one message of `role`, or checked chat messages."""
        messages = [{"role": role, "content": value}] if isinstance(value, str) else value
        well_formed = isinstance(messages, list) and all(
            isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)
            for message in messages
        )
        if not well_formed:
            allowed = "[{'role': " + " | ".join(ROLES) + ", 'content': a text}, …]"
            raise self.refusal(name, f"has neither a text nor chat messages as its {name}: {_short(value)}", allowed)
        if not any(message["content"].strip() for message in messages):
            raise self.refusal(name, f"has a blank {name}")
        return messages

    def _with_system(self, messages: Messages) -> Messages:
        if not self.mapping.system or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.mapping.system}, *messages]

    def _format(self, key: str, template: str) -> str:
        try:
            return template.format_map(self.known)
        except (KeyError, IndexError, AttributeError) as error:
            problem = f"{self.place} has not all that {template!r} asks for: {error}"
            raise Refusal(f"data.{key}", problem, self._own_fields(self.known)) from error

    @staticmethod
    def _own_fields(fields: dict[str, Any]) -> str:
        return "its fields: " + (", ".join(fields) or "none")


def _lookup(fields: dict[str, Any], name: str) -> Any:
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:50] + " … " + text[-25:]
