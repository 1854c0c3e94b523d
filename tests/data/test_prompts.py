import pytest
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from ruyi_rl.data.loading import load_data
from ruyi_rl.data.options import DataOptions
from ruyi_rl.data.prompts import limit_prompts
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.refusal import Refusal


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def prompts(*texts):
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "answer": text[:1]} for text in texts])


def test_longer_prompts_are_left_out_and_counted(tokenizer):
    dataset = prompts("a" * 5, "b" * 20, "c" * 7, "é" * 4)
    kept, report = limit_prompts(dataset, tokenizer, 10)
    assert list(kept["answer"]) == ["a", "c"]
    assert (report.longest, report.limit, report.kept, report.dropped) == (23, 10, 2, 2)
    whole, report = limit_prompts(dataset, tokenizer, 23)
    assert list(whole) == list(dataset) and (report.kept, report.dropped) == (4, 0)


def test_more_rows_than_a_batch(tokenizer):
    kept, report = limit_prompts(prompts(*["a" * (i % 7 + 1) for i in range(2500)]), tokenizer, 8)
    assert report.kept == len(kept) == sum(i % 7 + 4 <= 8 for i in range(2500))


def test_text_prompts(tokenizer):
    dataset = Dataset.from_list([{"prompt": "abc"}, {"prompt": "abcdef"}])
    kept, report = limit_prompts(dataset, tokenizer, 3)
    assert list(kept["prompt"]) == ["abc"] and report.longest == 6


def test_nothing_left_is_refused(tokenizer):
    with pytest.raises(Refusal, match="7 leaves none of the 2 prompts .the shortest has 8 tokens, the longest 9"):
        limit_prompts(prompts("a" * 5, "a" * 6), tokenizer, 7)


def test_no_chat_template_is_refused():
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(Refusal, match="no chat template"):
        limit_prompts(prompts("a"), bare, 7)


@pytest.mark.parametrize("assistant_only", [False, True])
def test_trl_learns_the_assistants_tokens_and_the_end_only(tokenizer, tmp_path, assistant_only):
    options = DataOptions(source="arithmetic", task={"train_problems": 20, "test_problems": 5}, system="Add. 加")
    rows = load_data(options, 1, "sft").train
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    args = SFTConfig(
        output_dir=str(tmp_path),
        report_to=[],
        use_cpu=True,
        bf16=False,
        shuffle_dataset=False,
        assistant_only_loss=assistant_only,
    )
    trainer = SFTTrainer(Qwen3ForCausalLM(config), args=args, train_dataset=rows, processing_class=tokenizer)
    assert len(trainer.train_dataset) == 20
    for row, encoded in zip(rows, trainer.train_dataset, strict=True):
        learnt = [label for label in encoded["labels"] if label != -100]
        assert tokenizer.decode(learnt) == row["completion"][0]["content"] + "<|im_end|>"
        assert encoded["labels"][-len(learnt) :] == encoded["input_ids"][-len(learnt) :] == learnt
        assert "Add. 加" in tokenizer.decode(encoded["input_ids"])
