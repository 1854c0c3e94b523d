"""What counts as a secret, and that none is left in what is stored or shown; nothing else changes."""

import json
import pickle
from copy import deepcopy
from dataclasses import asdict

import pytest
import yaml

from ruyi_rl.cli.compose import compose_config, conf_dir
from ruyi_rl.execution import continuing_command
from ruyi_rl.redaction import HIDDEN, Redaction, Unpickled, is_secret, is_secret_variable, without_secrets
from ruyi_rl.rewards.options import RewardFunctionOptions
from ruyi_rl.validation.trainer_fields import trainer_fields

SECRETS = {
    "grpo.trainer.hub_token": "hf_oneoneone",
    "sft.trainer.hub_token": "hf_two'two",
    "reward.functions.judge.kwargs.api_key": "sk-three",
    "reward.functions.judge.kwargs.headers.Authorization": "Bearer four.four.four",
    "reward.functions.judge.kwargs.secrets.mine": "five five, five",
    "reward.functions.judge.kwargs.password": 66666666,
    "reward.functions.judge.kwargs.slack_webhook": "https://hooks.example/T1/B2/seven",
    "rollout.engine.hfToken": "hf_eight",
    "deepspeed.config.wandb.WANDB-API-KEY": "nine{nine}",
}
PLAIN = {
    "grpo.trainer.eos_token": "</s>",
    "sft.trainer.pad_token": "endoftext",
    "grpo.trainer.max_tokens": 512,
    "grpo.token_budget": 16384,
    "reward.functions.judge.kwargs.api_key_env": "MY_API_KEY",
    "reward.functions.judge.kwargs.token_file": "tokens.txt",
    "reward.functions.judge.kwargs.first_token": "A",
    "reward.functions.judge.kwargs.mark_token": "<|mark|>",
    "reward.functions.secret.path": "rewards/secret.py",
    "reward.functions.secret.weight": 0.5,
    "model.exits.token": 6,
    "data.prompt_template": "password: {prompt}, api_key=3",
    "grpo.trainer.hub_strategy": "every_save",
}


def nested(flat):
    tree = {}
    for key, value in flat.items():
        *parents, name = key.split(".")
        block = tree
        for parent in parents:
            block = block.setdefault(parent, {})
        block[name] = value
    return tree


@pytest.mark.parametrize("key", SECRETS)
def test_secrets_are_told_by_their_keys(key):
    assert is_secret(key, SECRETS[key])


@pytest.mark.parametrize("key", PLAIN)
def test_what_only_sounds_like_one_is_none(key):
    assert not is_secret(key, PLAIN[key])


def test_a_tree_loses_its_secrets_and_nothing_else():
    hidden = Redaction.of(nested(SECRETS | PLAIN), {}).tree(nested(SECRETS | PLAIN))
    assert hidden == nested({key: HIDDEN for key in SECRETS} | PLAIN)


def test_a_message_loses_every_secret_that_is_known_however_it_is_written():
    redaction = Redaction.of(nested(SECRETS), {"MY_TOKEN": "ten-ten"})
    for value in (*SECRETS.values(), "ten-ten"):
        for text in (f"refused: {value}!", f"x{value}x", json.dumps({"a": [value]})):
            assert str(value) not in redaction.text(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("--hub_token=abc def", "--hub_token=*** def"),
        ("{'api_key': 'a b', 'x': 1}", "{'api_key': '***', 'x': 1}"),
        ('{"password": "a", "max_tokens": 5}', '{"password": "***", "max_tokens": 5}'),
        ("connect(token=abc, url=d)", "connect(token=***, url=d)"),
        ("GET https://me:pw@host:8/v1?key=abc&n=1 failed", "GET https://***@host:8/v1?key=***&n=1 failed"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: *** ***"),
        ("https://me:p@ss@host/x", "https://***@host/x"),
        ("'seven' is no token; eos_token=</s>", "'seven' is no token; eos_token=</s>"),
        ("me@host, see http://host/@me", "me@host, see http://host/@me"),
    ],
)
def test_a_message_loses_what_looks_like_a_secret(text, left):
    assert Redaction().text(text) == left


def test_no_shipped_configuration_holds_anything_that_is_hidden():
    files = sorted(conf_dir().rglob("*.yaml"))
    assert len(files) > 40
    for file in files:
        group = file.parent.name if file.parent != conf_dir() else ""
        tree = {group: yaml.safe_load(file.read_text())}
        assert Redaction().tree(tree) == tree, file


def test_of_the_trainers_fields_the_hubs_token_alone_is_a_secret():
    for trainer in ("sft", "grpo"):
        assert [name for name in trainer_fields(trainer) if is_secret(name, "abc")] == ["hub_token"]


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "AZURE_OPENAI_KEY"]
)
def test_variables_of_the_environment(name):
    assert is_secret_variable(name, "abcdef")
    assert not is_secret_variable(f"{name}_FILE", "abcdef") and not is_secret_variable(name, "/run/secrets/abc")


def test_a_password_inside_a_variable_is_hidden():
    hidden = Redaction.of({}, {"DATABASE_URL": "postgres://me:hunter22@db/x", "SHELL": "/bin/sh"})
    assert hidden.text("no connection as me with hunter22") == "no connection as me with ***"


def test_variables_that_are_no_secrets():
    for name in ("TOKENIZERS_PARALLELISM", "GPG_KEY", "SSH_AUTH_SOCK", "PATH", "OMP_NUM_THREADS", "KEYBOARD"):
        assert not is_secret_variable(name, "something")


def test_a_secret_decides_neither_the_runs_name_nor_a_stages_result():
    typed = ["stage=grpo", "reward=math_judge", "reward.functions.judge.kwargs.model=m"]

    def name(*more):
        return compose_config([*typed, *more]).name

    def url(there):
        return f"reward.functions.judge.kwargs.url='http://{there}/v1'"

    assert name("grpo.trainer.hub_token=hf_abc") == name() == name("+grpo.trainer.hub_token=hf_other")
    assert name(url("me:one@host")) == name(url("me:two@host")) != name(url("me:one@other"))
    assert without_secrets(SECRETS | PLAIN) == PLAIN


def test_the_command_that_continues_shows_where_the_secret_stood_and_runs_no_more_than_that():
    words = ["stage=grpo", "grpo.trainer.hub_token=hf_abc", "reward.functions.judge.kwargs={api_key: 'x y', n: 1}"]
    shown = [Redaction.of_command(words, {}).text(word) for word in words]
    command = continuing_command(shown, 1)
    assert "hf_abc" not in command and "x y" not in command and "grpo.trainer.hub_token=***" in command
    assert "n: 1" in command


def test_a_secret_that_a_library_pickles_is_not_in_the_pickle():
    secret = Unpickled("hf_abc")
    assert secret == "hf_abc" and deepcopy({"a": secret}) == {"a": "hf_abc"}
    assert b"hf_abc" not in pickle.dumps({"a": secret}) and pickle.loads(pickle.dumps(secret)) == HIDDEN


def test_the_options_of_a_function_keep_their_values():
    options = asdict(RewardFunctionOptions(path="a.py", kwargs={"api_key": "sk-abc", "eos_token": "</s>"}))
    hidden = Redaction.of({}).tree(options, "reward.functions.secret")
    assert hidden == options | {"kwargs": {"api_key": HIDDEN, "eos_token": "</s>"}}
