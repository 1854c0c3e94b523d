"""What must never be stored or shown: passwords, keys and tokens of the configuration and the environment. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HIDDEN = "***"
"""Stands where a secret stood."""
SHORTEST = 4
"""Characters of the shortest secret that is looked for inside other texts: a shorter one is a part of many words."""
CREDENTIAL = re.compile(
    r"(^|_)(passwords?|passwd|passphrase|secrets?|credentials?|authori[sz]ation|cookie|bearer|webhook(_url)?"
    r"|api_?keys?|(openai|secret|hub|access|private|auth|account)_key(_id)?)(_|$)"
)
TOKEN = re.compile(r"(^|_)token$")
OF_TEXT = re.compile(
    r"(^|_)(pad|eos|bos|unk|sep|cls|mask|stop|start|end|begin|image|video|audio|special|think|turn|first|last|next"
    r"|new|per|each|max|min|num)_token$"
)
"""Tokens of a text, not of an account."""
PLACE = re.compile(r"_(env|file|path|dir|folder|name)$")
"""Says where a secret is, not what it is: `api_key_env`."""
MARKUP = re.compile(r"^(<.*>|\[.*\])$")
"""A token of a text: `<|im_end|>`."""
USERINFO = re.compile(r"(?<=://)[^\s/?#'\"]+(?=@)")
QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^\s&#'\"]+)")
BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}")
PAIR = re.compile(r"(?<![\w/])([\w.-]+)(['\"]?\s*(?::\s|=)\s*)(?:'([^']*)'|\"([^\"]*)\"|([^\s,;'\"(){}\[\]]+))")
"""`name=value`, `name: value`, and the same with quotes, as in command lines, JSON, YAML and tracebacks."""


def is_secret(key: str, value: Any) -> bool:
    """Whether a configuration value is a secret, told by its dotted key.

    Args:
        key: `grpo.trainer.hub_token`; what stands below a secret's name is secret as well (`kwargs.secrets.mine`).
        value: only texts are secrets, and numbers whose own name says so.
    """
    parts = key.split(".")
    if parts[:2] == ["reward", "functions"]:
        parts = parts[3:]  # a function may have any name
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        return False
    if isinstance(value, str):
        return not MARKUP.match(value) and any(map(_names_secret, parts))
    return bool(parts) and _names_secret(parts[-1]) and not TOKEN.search(_words(parts[-1]))


def is_secret_variable(name: str, value: str) -> bool:
    """Whether a variable of the environment is a secret; a path is none."""
    return len(value) >= SHORTEST and not value.startswith("/") and _names_secret(name)


@dataclass(frozen=True)
class Redaction:
    """Hides secrets in whatever is stored or shown."""

    values: tuple[str, ...] = ()
    """Secrets that are known, the longest first: they are hidden wherever they stand."""

    @classmethod
    def of(cls, config: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Redaction:
        """Knows the secrets of a configuration (nested dicts) and of the environment."""
        found = {value for name, value in environment.items() if is_secret_variable(name, value)}
        for value in environment.values():  # DATABASE_URL and the like
            found.update(part for match in USERINFO.findall(value) for part in match.split(":")[1:])
        for key, value in _leaves(config):
            if is_secret(key, value) and not str(value).startswith("${"):
                found.add(str(value))
            elif isinstance(value, str):
                found.update(part for match in USERINFO.findall(value) for part in match.split(":", 1))
        return cls(tuple(sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)))

    @classmethod
    def of_command(cls, arguments: Iterable[str], environment: Mapping[str, str] = os.environ) -> Redaction:
        """Knows the secrets that a command line sets by `key=value`; for when there is no configuration yet."""
        pairs = (word.lstrip("+~").partition("=") for word in arguments)
        return cls.of({key: value.strip("'\"") for key, _, value in pairs}, environment)

    def text(self, text: str) -> str:
        """A message without the secrets that are known, and without what looks like one: `api_key=…`, a URL's user."""
        return PAIR.sub(_hidden_pair, self.value(text))

    def value(self, text: str) -> str:
        """A configured text without the secrets that are known; what only looks like one, as in a prompt's template,
        stays, but for the user and the keys of a URL."""
        for value in self.values:
            text = text.replace(value, HIDDEN)
        return BEARER.sub(rf"\1 {HIDDEN}", QUERY.sub(_hidden_query, USERINFO.sub(HIDDEN, text)))

    def tree(self, value: Any, key: str = "") -> Any:
        """Nested dicts and lists with every secret hidden.

        Args:
            key: the dotted key of `value`.
        """
        if isinstance(value, Mapping):
            return {name: self.tree(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.tree(item, key) for item in value]
        if is_secret(key, value):
            # An interpolation says where the secret comes from.
            return value if isinstance(value, str) and value.startswith("${") else HIDDEN
        return self.value(value) if isinstance(value, str) else value


class Unpickled(str):
    """A secret for a library that pickles what holds it: there it is `HIDDEN`."""

    def __reduce__(self):
        return str, (HIDDEN,)

    def __deepcopy__(self, memo: dict) -> Unpickled:
        return self


def without_secrets(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration without its secrets, which decide no result: the same run may have another key tomorrow."""
    plain = Redaction()
    return {key: plain.tree(value, key) for key, value in tree.items() if not is_secret(key, value)}


def _names_secret(name: str) -> bool:
    words = _words(name)
    if PLACE.search(words):
        return False
    return bool(CREDENTIAL.search(words)) or bool(TOKEN.search(words) and not OF_TEXT.search(words))


def _words(name: str) -> str:
    """`hubToken`, `HUB-TOKEN` -> `hub_token`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, item in tree.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item, key)
    else:
        yield key, tree


def _hidden_query(match: re.Match[str]) -> str:
    name, value = match.groups()
    hidden = _names_secret(name) or name.lower() in ("key", "sig", "signature")
    return f"{name}={HIDDEN if hidden else value}"


def _hidden_pair(match: re.Match[str]) -> str:
    name, between = match[1], match[2]
    value = next(group for group in match.groups()[2:] if group is not None)
    if not value or value in ("None", "null", HIDDEN) or not is_secret(name, value):
        return match[0]
    quote = next((sign for number, sign in ((3, "'"), (4, '"')) if match[number] is not None), "")
    return f"{name}{between}{quote}{HIDDEN}{quote}"
