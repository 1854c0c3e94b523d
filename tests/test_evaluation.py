import math
import random
import statistics

import pytest

from ruyi_rl import ranks
from ruyi_rl.benchmarks.answers import prompt_token_ids
from ruyi_rl.benchmarks.verdicts import Judge
from ruyi_rl.data.tokenizer import byte_tokenizer
from ruyi_rl.evaluation import chosen_problems, evaluate_family
from ruyi_rl.rollout.worker import Completion
from ruyi_rl.training.options import EvaluationOptions

OPTIONS = EvaluationOptions(problems=40, samples=8, temperature=1.0, max_new_tokens=6)
SKILL = {"small": 0.2, "large": 0.7}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def rows():
    return [{"prompt": [{"role": "user", "content": f"{n}+1="}], "answer": str(n + 1)} for n in range(60)]


class Guesser:
    """A worker that samples right answers with an exit's probability; greedy is right at the large exit only."""

    name = "guesser"

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def generate(self, requests, sampling):
        self.calls.append(requests)
        completions = []
        for request in requests:
            question = self.tokenizer.decode(request.prompt_ids, skip_special_tokens=True)
            right = int(question.split("user")[-1].split("+")[0]) + 1
            drawn = random.Random(request.seed).random() < SKILL[request.exit]
            good = request.exit == "large" if sampling.temperature == 0 else drawn
            text = str(right if good else 0)
            completions.append(Completion(self.tokenizer(text)["input_ids"], finished=good))
        return completions


def judge(prompts, completions, answer, **columns):
    return [float(chat[0]["content"] == gold) for chat, gold in zip(completions, answer, strict=True)]


def measured(tokenizer, rows, exits=("small", "large"), judge=judge, seed=1, options=OPTIONS):
    found = evaluate_family(tokenizer, rows, Judge(judge), exits, options, Guesser(tokenizer), seed)
    return {name: each.score for name, each in found.items()}


def test_pass_rates_are_the_workers_skill_and_greedy_is_its_own(tokenizer, rows):
    scores = measured(tokenizer, rows)
    for exit, skill in SKILL.items():
        # 320 draws: five standard deviations of the mean.
        assert scores[exit].pass_rate == pytest.approx(skill, abs=5 * math.sqrt(skill * (1 - skill) / 320))
        assert scores[exit].truncated == pytest.approx(1 - scores[exit].pass_rate)
    assert (scores["small"].greedy, scores["large"].greedy) == (0.0, 1.0)


def test_the_rate_and_its_error_equal_a_count_by_hand(tokenizer, rows):
    worker = Guesser(tokenizer)
    score = evaluate_family(tokenizer, rows, Judge(judge), ["small"], OPTIONS, worker, 3)["small"].score
    right = [random.Random(request.seed).random() < SKILL["small"] for request in worker.calls[0]]
    shares = [sum(right[start : start + 8]) / 8 for start in range(0, 320, 8)]
    assert score.pass_rate == pytest.approx(statistics.fmean(shares))
    assert score.standard_error == pytest.approx(statistics.stdev(shares) / math.sqrt(40))


def test_an_exits_score_depends_on_the_seed_but_on_no_other_exit(tokenizer, rows):
    both, swapped = measured(tokenizer, rows), measured(tokenizer, rows, exits=("large", "small"))
    alone, other_seed = measured(tokenizer, rows, exits=("small",)), measured(tokenizer, rows, seed=2)
    assert both["small"].pass_rate == swapped["small"].pass_rate == alone["small"].pass_rate
    assert both["small"].pass_rate != other_seed["small"].pass_rate


def test_ranks_share_the_problems_and_pool_their_verdicts(tokenizer, rows, monkeypatch):
    answered = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: 3)
        monkeypatch.setattr(ranks, "gathered", lambda value: answered.append(value) or [value])
        measured(tokenizer, rows, exits=("large",))
    assert [len(share) for share in answered] == [14, 13, 13]
    monkeypatch.setattr(ranks, "gathered", lambda value: answered)
    pooled = measured(tokenizer, rows, exits=("large",))["large"]
    everyone = [problem for share in answered for problem in share]
    assert pooled.pass_rate == pytest.approx(
        sum(sample.right for problem in everyone for sample in problem.samples) / 320
    )
    monkeypatch.undo()
    assert pooled.pass_rate == pytest.approx(measured(tokenizer, rows, exits=("large",))["large"].pass_rate)


def test_a_rank_without_a_problem_still_takes_part(tokenizer, rows, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 3)
    monkeypatch.setattr(ranks, "world_size", lambda: 4)
    calls = []
    monkeypatch.setattr(ranks, "gathered", lambda value: calls.append(value) or [value])
    score = measured(tokenizer, rows[:2], exits=("large",))["large"]
    assert calls == [[]] and math.isnan(score.pass_rate)


def test_what_cannot_be_judged_is_counted_and_left_out(tokenizer, rows):
    def moody(prompts, completions, answer, **columns):
        verdicts = judge(prompts, completions, answer)
        return [None if gold == "5" else math.nan if gold == "6" else v for v, gold in zip(verdicts, answer)]

    rows = rows[:10]
    score = measured(tokenizer, rows, exits=("large",), judge=moody)["large"]
    assert score.failures == 2 * (8 + 1) and score.greedy == 1.0
    assert 0.4 < score.pass_rate < 1.0


def test_a_pass_is_a_reward_of_at_least_pass_at(tokenizer, rows):
    def half(prompts, completions, answer, **columns):
        return [0.5] * len(completions)

    for pass_at, expected in ((0.5, 1.0), (0.51, 0.0)):
        worker = Guesser(tokenizer)
        score = evaluate_family(tokenizer, rows, Judge(half, pass_at), ["large"], OPTIONS, worker, 1)["large"].score
        assert score.pass_rate == score.greedy == expected


def test_the_problems_are_drawn_over_the_whole_split_and_the_same_for_every_exit(rows):
    drawn = chosen_problems(len(rows), 20, 1)
    assert len(set(drawn)) == 20 and drawn == sorted(drawn) and drawn != list(range(20))
    assert drawn == chosen_problems(len(rows), 20, 1)
    assert chosen_problems(len(rows), 1000, 1) == list(range(len(rows)))


def test_the_judge_sees_the_rows_fields_and_text_prompts_get_text_completions(tokenizer):
    seen = {}

    def spy(prompts, completions, completion_ids, answer, level, exit, log_extra, log_metric, **columns):
        seen.update(prompts=prompts, completions=completions, level=level, exit=exit, columns=columns)
        log_extra("shown", [1])
        log_metric("shown", 1.0)
        return [1.0] * len(completions)

    rows = [{"prompt": "1+1=", "answer": "2", "level": 3, "completion": "2"}]
    evaluate_family(tokenizer, rows, Judge(spy), ["large"], OPTIONS, Guesser(tokenizer), 1)
    assert seen == {
        "prompts": ["1+1="],
        "completions": ["2"],
        "level": [3],
        "exit": ["large"],
        "columns": {"trainer_state": None},
    }


def test_an_async_judge_is_awaited(tokenizer, rows):
    async def later(prompts, completions, answer, **columns):
        return judge(prompts, completions, answer)

    assert measured(tokenizer, rows, judge=later)["small"].pass_rate == measured(tokenizer, rows)["small"].pass_rate


def test_prompts_are_tokenised_as_the_template_renders_them(tokenizer):
    chat = [{"role": "user", "content": "1+1="}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(prompt_token_ids(tokenizer, chat)) == rendered
    assert prompt_token_ids(tokenizer, "1+1=") == list(b"1+1=")


def test_a_limit_is_needed(tokenizer, rows):
    with pytest.raises(ValueError, match="max_new_tokens"):
        measured(tokenizer, rows, options=EvaluationOptions())
