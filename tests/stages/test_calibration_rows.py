"""Which rows calibrate, and that they are tokenised as the trainer does it."""

import json

import pytest
import torch
from datasets import Dataset

from ruyi_rl.config import RunConfig
from ruyi_rl.data.options import DataOptions
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.family.options import CompressOptions
from ruyi_rl.refusal import Refusal
from ruyi_rl.stages.calibration_rows import calibration_rows, token_batches, token_rows

MESSAGES = [
    [{"role": "user", "content": f"{n}+1="}, {"role": "assistant", "content": "so " * (n % 3) + str(n + 1)}]
    for n in range(6)
]
FORMS = {
    "messages": [{"messages": chat} for chat in MESSAGES],
    "prompt and completion": [{"prompt": chat[:1], "completion": chat[1:]} for chat in MESSAGES],
    "text": [{"text": "one and " * n + "two"} for n in range(6)],
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_tokenised_as_the_trainer_does_it(form, family_folder, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from ruyi_rl.family import Family

    rows, tokenizer = Dataset.from_list(FORMS[form]), byte_tokenizer()
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    model = Family.from_pretrained(family_folder).branch("small")
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    assert token_rows(rows, tokenizer) == [list(row) for row in trainer.train_dataset["input_ids"]]


@pytest.fixture
def make(tmp_path):
    def found(rows=40, seed=1, **options):
        lines = [{"prompt": f"{n}=", "completion": "x" * (n % 5) + str(n)} for n in range(rows + 1)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = DataOptions(path=str(tmp_path / "rows.jsonl"), holdout=1, test=None)
        config = RunConfig(data=data, seed=seed, compress=CompressOptions(**{"calibration_rows": 8, **options}))
        return calibration_rows(config, byte_tokenizer())

    return found


def test_calibration_held_out_and_training_rows(make):
    rows = make()
    assert (len(rows.calibration), len(rows.held_out), len(rows.training)) == (8, 4, 36)
    learnt = [tuple(ids) for ids in token_rows(rows.training, byte_tokenizer())]
    calibration, held_out = ({tuple(ids) for ids in part} for part in (rows.calibration, rows.held_out))
    assert calibration <= set(learnt) and not held_out & set(learnt) and len(set(learnt) | held_out) == 40
    assert make().calibration == rows.calibration and make(seed=2).calibration != rows.calibration


@pytest.mark.parametrize(("rows", "calibration", "held_out"), [(2, 1, 1), (9, 6, 3), (11, 7, 4), (12, 8, 4)])
def test_of_too_few_rows_a_third_is_held_out(make, rows, calibration, held_out):
    found = make(rows)
    assert (len(found.calibration), len(found.held_out)) == (calibration, held_out)


def test_long_rows_are_left_out_and_counted(make):
    lengths = sorted(map(len, make(calibration_rows=100).calibration + make(calibration_rows=100).held_out))
    found = make(max_length=lengths[20], calibration_rows=100)
    kept = sum(length <= lengths[20] for length in lengths)
    assert found.lengths.left_out == 40 - kept > 0 and len(found.calibration) + len(found.held_out) == kept
    with pytest.raises(Refusal, match="longer than 3 tokens") as refused:
        make(max_length=3)
    assert refused.value.key == "compress.max_length"


def test_one_row_cannot_calibrate_and_be_held_out(make):
    with pytest.raises(Refusal, match="1 row") as refused:
        make(1)
    assert refused.value.key == "compress.data"


def test_batches_hold_each_row_once_and_no_more_padding_than_they_must():
    rows = [[n + 1] * (1 + 5 * n % 7) for n in range(10)]
    batches = token_batches(rows, 4, padding=0)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    found = []
    for batch in batches:
        assert torch.equal(batch["input_ids"] != 0, batch["attention_mask"].bool())
        assert batch["attention_mask"].all(1).any() and not (batch["attention_mask"].diff(dim=1) > 0).any()
        found += [row[row != 0].tolist() for row in batch["input_ids"]]
    assert sorted(found) == sorted(rows)


def own(tmp_path, lines, **fields):
    (tmp_path / "own.jsonl").write_text(lines)
    data = DataOptions(path=str(tmp_path / "own.jsonl"), test=None, fields=fields)
    return RunConfig(seed=1, compress=CompressOptions(calibration_rows=8, data=data))


def test_rows_of_its_own_need_no_held_out_problems(tmp_path):
    config = own(tmp_path, 20 * (json.dumps({"text": "always the same"}) + "\n"), text="text")
    rows = calibration_rows(config, byte_tokenizer())
    assert (len(rows.calibration), len(rows.held_out), len(rows.training)) == (8, 4, 16)


def test_what_is_wrong_with_rows_of_its_own_names_their_key(tmp_path):
    config = own(tmp_path, json.dumps({"text": "no completion"}) + "\n")
    with pytest.raises(Refusal, match=r"^compress\.data\.fields\.prompt: "):
        calibration_rows(config, byte_tokenizer())
