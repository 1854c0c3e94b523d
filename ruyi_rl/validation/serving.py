"""The tools that read a family: what can be known of them before torch is imported."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from ruyi_rl import ranks
from ruyi_rl.config import RunConfig
from ruyi_rl.pipeline import check_stages
from ruyi_rl.redaction import is_secret
from ruyi_rl.refusal import Refusal, nearest
from ruyi_rl.rollout.vllm_version import vllm_problem
from ruyi_rl.stages.exported import require_own, serve_target
from ruyi_rl.stages.options import GenerateOptions, ServeOptions
from ruyi_rl.stages.prompts import read_prompts
from ruyi_rl.tools import find_family
from ruyi_rl.validation.exporting import check_export
from ruyi_rl.validation.folders import require_folder
from ruyi_rl.validation.known_family import described_family
from ruyi_rl.validation.model import check_model, family_exits, read_model_config
from ruyi_rl.validation.rollout import check_rollout
from ruyi_rl.validation.values import require, require_exits

SERVE_KEYS = {"model": "serve.exit", "host": "serve.host", "port": "serve.port"}
"""Flag of vLLM's that another key decides -> that key."""
SERVE_VARIABLES = {"api_key": "the variable VLLM_API_KEY", "hf_token": "the variable HF_TOKEN"}
"""Flag of vLLM's that is a secret -> where vLLM finds it as well."""


def check_launch(config: RunConfig) -> None:
    """Refuse `launch` for a stage that starts no server."""
    if config.launch and config.stage.name != "serve":
        raise Refusal("launch", f"stage={config.stage.name} starts no server", "stage=serve launch=true")


def check_tool(config: RunConfig) -> None:
    """Refuse a tool that cannot run.

    Raises:
        Refusal: the first thing that is wrong.
    """
    name = config.stage.name
    ranks_asked = max(config.num_processes, ranks.world_size())
    require("num_processes", ranks_asked, ranks_asked == 1, f"1: stage={name} runs in one process")
    check_stages(config)
    if config.start_from is not None:
        check_model(config)
    folder = find_family(config)
    stored = read_model_config("start_from" if config.start_from else "run_dir", folder)
    exits = family_exits(stored)
    if name == "generate":
        _check_exits("generate.exits", config.generate.exits or [], folder, exits)
        _check_drawing(config.generate, stored.get("max_position_embeddings"))
        _check_prompts(config.generate, folder)
        check_rollout(config.rollout, described_family(stored).depths, 1)
        return
    if name == "export":
        check_export(config, folder, stored, exits)
        return
    if config.serve.exit is not None:
        _check_exits("serve.exit", [config.serve.exit], folder, exits)
    _check_server(config.serve)
    output = serve_target(config, stored, exits).folder
    require_folder("serve.output", output)
    require_own("serve.output", output)
    if config.launch:
        _check_can_launch(config.serve)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder has a chat template.

    Raises:
        Refusal: no tokenizer there.
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        raise Refusal("start_from", f"{folder} holds no tokenizer (tokenizer_config.json)", "save it with the family")
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return bool(json.loads(file.read_text(encoding="utf-8")).get("chat_template"))


def _check_exits(key: str, names: list[str], folder: Path, exits: Mapping[str, int]) -> None:
    for name in names:
        if name not in exits:
            raise Refusal(key, f"no exit {name!r} in {folder}", nearest(name, exits))
    require_exits(key, names, exits)


def _check_drawing(options: GenerateOptions, positions: int | None) -> None:
    new, temperature, samples = options.max_new_tokens, options.temperature, options.samples
    require("generate.exits", options.exits, options.exits is None or bool(options.exits), "at least one, or null")
    require("generate.max_new_tokens", new, new >= 1, "1 or more")
    if positions is not None and new >= positions:
        problem = f"{new} leaves no room for a prompt in the family's {positions} positions"
        raise Refusal("generate.max_new_tokens", problem, f"below {positions}")
    require("generate.temperature", temperature, temperature >= 0, "0 (greedy) or more")
    require("generate.top_p", options.top_p, 0 < options.top_p <= 1, "above 0, at most 1")
    require("generate.top_k", options.top_k, options.top_k >= 0, "0 (no limit) or more")
    require("generate.samples", samples, samples >= 1, "1 or more")
    if temperature > 0:
        return
    remedy = "generate.temperature above 0"
    if samples > 1:
        raise Refusal("generate.samples", f"{samples} completions of greedy decoding would be equal", remedy)
    for key, unused in (("top_p", 1.0), ("top_k", 0)):
        if getattr(options, key) != unused:
            raise Refusal(f"generate.{key}", f"{getattr(options, key)} has no effect on greedy decoding", remedy)


def _check_prompts(options: GenerateOptions, folder: Path) -> None:
    if options.prompt is not None and options.file is not None:
        raise Refusal("generate.prompt", "is given, and generate.file too", "one of the two")
    template = has_chat_template(folder)
    chat = template if options.chat is None else options.chat
    if chat and not template:
        raise Refusal("generate.chat", f"the tokenizer in {folder} has no chat template", "generate.chat=false")
    if options.system is not None and not chat:
        raise Refusal("generate.system", "is given, but prompts are taken as plain text", "no system message")
    if options.prompt is not None:
        require("generate.prompt", options.prompt, bool(options.prompt.strip()), "a text that is not blank")
    elif options.file is not None:
        for prompt in read_prompts(Path(options.file)):
            if not chat and not isinstance(prompt.content, str):
                raise Refusal("generate.file", f"{prompt.place} is a chat, but prompts are plain text here", "text")
    elif sys.stdin.isatty() and options.samples > 1:
        raise Refusal("generate.samples", f"{options.samples}, but a chat goes on from one answer", "1")
    if options.output is None:
        return
    output = Path(options.output)
    if output.is_dir() or (options.file is not None and output.absolute() == Path(options.file).absolute()):
        what = "a folder" if output.is_dir() else "generate.file"
        raise Refusal("generate.output", f"{output} is {what}", "a file of its own")
    require_folder("generate.output", output.parent)


def _check_server(options: ServeOptions) -> None:
    require("serve.port", options.port, 1 <= options.port <= 65535, "1 to 65535")
    require("serve.host", options.host, bool(options.host.strip()), "an address such as 127.0.0.1")
    for key, value in options.engine.items():
        name = str(key).replace("-", "_")
        if name in SERVE_KEYS:
            raise Refusal(f"serve.engine.{key}", f"{value!r} cannot be set here", f"use {SERVE_KEYS[name]}")
        if is_secret(name, value):
            variable = SERVE_VARIABLES.get(name, "a variable of the environment")
            raise Refusal(f"serve.engine.{key}", "a command shows it to every user of the machine", f"use {variable}")


def _check_can_launch(options: ServeOptions) -> None:
    if problem := vllm_problem():
        raise Refusal("launch", f"no server can be started: {problem}", "install vLLM: RUYI_VLLM=cpu|cuda make setup")
    kind = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        with socket.create_server((options.host, options.port), family=kind):
            pass
    except OSError as error:
        raise Refusal("serve.port", f"cannot listen on {options.host}:{options.port}: {error.strerror}", "another port")
