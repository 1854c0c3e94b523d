from ruyi_rl.rollout.worker import Statistics, request_seeds

EXITS = ["small", "small", "large", "small", "large"]
PROMPTS = [[1, 2], [1, 2], [1, 2], [3], [1, 2]]


def test_a_seed_is_decided_by_run_occasion_prompt_exit_and_sample():
    seeds = request_seeds(1, ("train", 3), EXITS, PROMPTS)
    assert len(set(seeds)) == 5
    assert request_seeds(1, ("train", 3), EXITS, PROMPTS) == seeds
    assert not set(seeds) & set(request_seeds(2, ("train", 3), EXITS, PROMPTS))
    assert not set(seeds) & set(request_seeds(1, ("train", 4), EXITS, PROMPTS))


def test_neither_order_nor_company_decides_a_seed():
    seeds = request_seeds(1, (), EXITS, PROMPTS)
    order = [3, 0, 4, 1, 2]  # samples of one prompt keep their order
    mixed = request_seeds(1, (), [EXITS[i] for i in order], [PROMPTS[i] for i in order])
    by_key = {}
    for index, seed in zip(order, mixed):
        by_key.setdefault((EXITS[index], tuple(PROMPTS[index])), []).append(seed)
    assert by_key["small", (1, 2)] == [seeds[0], seeds[1]]
    assert by_key["large", (1, 2)] == [seeds[2], seeds[4]]
    assert request_seeds(1, (), ["small"], [[3]]) == [seeds[3]]


def test_samples_of_a_prompt_have_consecutive_seeds_that_an_engine_takes():
    seeds = request_seeds(7, (), ["small"] * 4, [[9]] * 4)
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    assert all(0 <= seed < 2**63 for seed in request_seeds(1, (), ["a"] * 500, [[n] for n in range(500)]))


def test_statistics_start_over_when_taken():
    statistics = Statistics()
    statistics.of("small").tokens += 3
    statistics.of("small").tokens += 4
    assert statistics.take()["small"].tokens == 7
    assert statistics.take() == {}
