"""`stage=generate` through the command, against the exits' stock branches."""

import io
import json
import random
import sys

import pytest
import torch
from rich.console import Console

from ruyi_rl.__main__ import main
from ruyi_rl.cli.compose import compose_config, to_run_config
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family import Family
from ruyi_rl.stages.chat import Chat
from ruyi_rl.stages.prompts import Prompt
from ruyi_rl.stages.speaker import Speaker
from ruyi_rl.stages.token_stream import TextDecoder

EXITS = ("small", "medium", "large")
NEW = 12


@pytest.fixture
def generate(family_folder, tmp_path, monkeypatch, capsys):
    """Runs the command; returns what it wrote on standard output, and the rows of its file."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides, status=0):
        command = [f"start_from={family_folder}", "run_dir=run", f"generate.max_new_tokens={NEW}", *overrides]
        assert main(["stage=generate", *command]) == status
        shown = capsys.readouterr()
        return shown.out if status == 0 else shown.err

    return run


def speaker_of(folder, *overrides):
    config = to_run_config(compose_config([f"generate.max_new_tokens={NEW}", *overrides]))
    return Speaker(folder, config)


def rows(*files):
    return [json.loads(line) for file in files for line in open(file)]


def greedy(folder, exit, ids):
    """Text of transformers' own greedy generation by the stock branch."""
    family, tokenizer = Family.from_pretrained(str(folder)), byte_tokenizer()
    branch = family.branch(exit).eval()
    out = branch.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, len(ids) :]
    return tokenizer.decode(out, skip_special_tokens=True)


def chat_ids(text):
    message = [{"role": "user", "content": text}]
    return byte_tokenizer().apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("exit", EXITS)
def test_one_exit_writes_its_branchs_own_greedy_text_and_nothing_else(generate, family_folder, exit):
    shown = generate("generate.prompt=3+5=", f"generate.exits=[{exit}]")
    assert shown == greedy(family_folder, exit, chat_ids("3+5=")) + "\n"
    plain = generate("generate.prompt=3+5=", f"generate.exits=[{exit}]", "generate.chat=false")
    assert plain == greedy(family_folder, exit, list(b"3+5=")) + "\n" != shown


def test_exits_side_by_side_say_what_each_says_alone(generate):
    alone = {exit: generate("generate.prompt=3+5=", f"generate.exits=[{exit}]") for exit in EXITS}
    assert len(set(alone.values())) == len(EXITS)
    assert generate("generate.prompt=3+5=") == "".join(f"[{exit}]\n{alone[exit]}\n" for exit in EXITS)


def test_a_draw_depends_on_seed_prompt_exit_and_sample_alone(generate, tmp_path):
    (tmp_path / "p.txt").write_text("b\na\nb\n")
    drawn = ["generate.temperature=1", "generate.top_p=0.9", "generate.top_k=40"]
    generate("generate.file=p.txt", "generate.output=all.jsonl", "generate.samples=2", *drawn)
    generate("generate.prompt=b", "generate.output=one.jsonl", "generate.exits=[large]", *drawn)
    generate("generate.prompt=b", "generate.output=other.jsonl", "generate.exits=[large]", "seed=2", *drawn)
    every = rows(tmp_path / "all.jsonl")
    assert [(row["prompt"], row["exit"], row["sample"]) for row in every] == [
        (prompt, exit, sample) for prompt in "bab" for exit in EXITS for sample in (0, 1)
    ]
    assert every[:6] == every[12:]
    assert len({row["completion"] for row in every[:6]}) == 6
    assert rows(tmp_path / "one.jsonl") == [every[4]]
    assert rows(tmp_path / "other.jsonl") != [every[4]]


@pytest.mark.parametrize("temperature", [0, 1])
def test_many_prompts_in_batches_give_the_rows_of_one_at_a_time(generate, tmp_path, temperature):
    prompts = [f"{n}+{n * n}=" for n in range(9)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    drawn = [f"generate.temperature={temperature}", "rollout=transformers", "rollout.batch_size=4"]
    assert generate("generate.file=p.jsonl", "generate.output=all.jsonl", *drawn) == ""
    for number, prompt in enumerate(prompts[:3]):
        generate(f"generate.prompt={prompt}", f"generate.output={number}.jsonl", *drawn)
    every = rows(tmp_path / "all.jsonl")
    assert [row["prompt"] for row in every[::3]] == prompts
    assert every[:9] == rows(*(tmp_path / f"{number}.jsonl" for number in range(3)))
    shown = generate("generate.file=p.jsonl", *drawn)
    blocks = [f"[{row['exit']}]\n{row['completion']}\n\n" for row in every]
    assert shown == "".join(f"> {prompt}\n" + "".join(blocks[3 * n : 3 * n + 3]) for n, prompt in enumerate(prompts))


def test_standard_input_that_is_no_terminal_gives_prompts(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("3+5=\n\n1+1=\n"))
    shown = generate("generate.exits=[small]")
    alone = [generate(f"generate.prompt={prompt}", "generate.exits=[small]") for prompt in ("3+5=", "1+1=")]
    assert shown == f"> 3+5=\n{alone[0]}> 1+1=\n{alone[1]}"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "generate.prompt: is not given" in generate(status=2)


def test_rows_of_messages_and_a_system_message_reach_the_template(generate, family_folder, tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": chat}) + "\n" + json.dumps({"prompt": "u"}) + "\n")
    generate("generate.file=p.jsonl", "generate.output=o.jsonl", "generate.system=s", "generate.exits=[large]")
    first, second = rows(tmp_path / "o.jsonl")
    ids = byte_tokenizer().apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert first["prompt"] == chat and second["prompt"] == "u"
    assert first["completion"] == second["completion"] == greedy(family_folder, "large", ids)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([{"prompt": "a"}, {"prompt": "x" * 250}], ("generate.file", "line 2", "253 tokens", "244")),
        ([{"prompt": [{"role": "tool", "content": "x"}]}], ("generate.file", "line 1", "chat template")),
    ],
)
def test_a_prompt_that_the_family_cannot_take_is_refused_before_any_is_answered(generate, tmp_path, prompts, words):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in prompts))
    (tmp_path / "o.jsonl").write_text("kept")
    message = generate("generate.file=p.jsonl", "generate.output=o.jsonl", status=2)
    assert all(word in message for word in words), message
    assert (tmp_path / "o.jsonl").read_text() == "kept"


def test_text_in_pieces_is_the_text_at_once():
    tokenizer, generator = byte_tokenizer(), random.Random(0)
    text = "añ 中文 😀 e\u0301\n\ufffd \\boxed{1}"
    invalid = [generator.randrange(len(tokenizer)) for _ in range(400)]
    for ids in (tokenizer(text)["input_ids"], invalid, [0xE4, 0xB8], []):
        decoder = TextDecoder(tokenizer)
        pieces = [decoder.add(token) for token in ids]
        assert "".join(pieces) + decoder.rest() == tokenizer.decode(ids, skip_special_tokens=True)
    decoder = TextDecoder(tokenizer)
    assert [decoder.add(byte) for byte in "é!".encode()] == ["", "é", "!"]


@pytest.fixture
def chat(family_folder):
    """Talks; returns the chat, what it was answered and the notes."""

    def talk(*lines, overrides=()):
        out, notes, recorded = io.StringIO(), io.StringIO(), []
        chat = Chat(
            speaker_of(family_folder, *overrides),
            Console(file=out, width=100),
            Console(file=notes, width=100),
            recorded.append,
        )
        left = iter(lines)
        chat.run(lambda: next(left, None))
        return chat, recorded, notes.getvalue()

    return talk


def test_every_exit_keeps_a_history_of_its_own(chat, family_folder):
    talked, recorded, _ = chat("one", "two")
    assert [(row["exit"], len(row["prompt"])) for row in recorded] == [(e, n) for n in (1, 3) for e in EXITS]
    for number, exit in enumerate(EXITS):
        first, second = recorded[number], recorded[number + 3]
        said = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first["completion"]},
            {"role": "user", "content": "two"},
        ]
        assert second["prompt"] == said
        ids = byte_tokenizer().apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert second["completion"] == greedy(family_folder, exit, ids)
        assert talked.histories[exit] == [*said, {"role": "assistant", "content": second["completion"]}]


def test_commands_of_a_chat(chat):
    _, recorded, notes = chat("one", "/reset", "one", "/exit smal", "/exit large,small", "two", "/exit", "three")
    assert recorded[:3] == recorded[3:6]
    assert "did you mean 'small'?" in notes and "/reset" in notes
    assert [row["exit"] for row in recorded[6:]] == ["small", "large", *EXITS]
    # What only some were told, the others do not know.
    assert [len(row["prompt"]) for row in recorded[6:]] == [3, 3, 5, 3, 5]


def test_lines_of_plain_text_have_no_history(chat, family_folder):
    _, recorded, _ = chat("one", "two", overrides=["generate.chat=false", "generate.exits=[small]"])
    assert [row["prompt"] for row in recorded] == ["one", "two"]
    assert recorded[1]["completion"] == greedy(family_folder, "small", list(b"two"))


def test_a_chat_goes_on_after_a_line_that_is_too_long(chat):
    _, recorded, notes = chat("x" * 300, "one")
    assert "300" not in notes and "303 tokens" in notes and "/reset" in notes
    assert [row["prompt"] for row in recorded] == [[{"role": "user", "content": "one"}]] * 3


def test_an_interrupt_stops_the_answer_and_keeps_what_had_come(chat, monkeypatch):
    from ruyi_rl.stages import answers

    original = answers.advance

    def interrupted(streams):
        for number, step in enumerate(original(streams)):
            if number == 7:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(answers, "advance", interrupted)
    _, recorded, notes = chat("one")
    assert [row["tokens"] for row in recorded] == [3, 3, 2] and "stopped" in notes


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_prompt_a_terminal_gets_a_chat(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", Terminal("3+5=\n\nnever read\n"))
    shown = generate("generate.exits=[small]", "generate.output=o.jsonl")
    assert shown == "> " + generate("generate.prompt=3+5=", "generate.exits=[small]") + "> "
    assert len(rows(tmp_path / "o.jsonl")) == 1
    assert "one answer" in generate("generate.samples=2", "generate.temperature=1", status=2)


def test_requests_of_a_prompt_are_every_sample_of_every_exit(family_folder):
    speaker = speaker_of(family_folder, "generate.samples=2", "generate.temperature=1")
    ids = speaker.prompt_ids(Prompt("a"))
    requests = speaker.requests(ids, ["small", "large"])
    assert [request.exit for request in requests] == ["small", "small", "large", "large"]
    assert speaker.requests(ids, ["large"]) == requests[2:]
