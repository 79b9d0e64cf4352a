"""The acceptance rules: what is emitted follows the target's law, whatever was drafted."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch

from elvi.core.accept import Draft, Path, Sampler, accept_greedy, accept_relaxed, accept_sampled

VOCABULARY = 5


class Enumerator(Sampler):
    """Follows one script of acceptances and rejections exactly: `weight` is the chance of it, `law` the last draw's."""

    def __init__(self, script=()):
        super().__init__(temperature=1.0)
        self.script, self.taken, self.weight, self.law = list(script), [], 1.0, None

    def uniform(self):
        return self

    def __mul__(self, proposed):
        self.proposed = proposed
        return self

    def __lt__(self, wanted):
        chance = min(1.0, wanted / self.proposed)
        self.taken.append(self.script[len(self.taken)] if len(self.taken) < len(self.script) else True)
        self.weight *= chance if self.taken[-1] else 1.0 - chance
        return self.taken[-1]

    def draw(self, probs):
        self.law = probs
        return 0


def outcomes(draft: Draft, logits: torch.Tensor):
    """All ways in which a draft can be received: accepted tokens, the law of the next token, the chance of it."""
    scripts = [[]]
    while scripts:
        sampler = Enumerator(scripts.pop())
        path = accept_sampled(draft, logits, sampler)
        if sampler.weight > 0:
            yield [draft.ids[node] for node in path.nodes], sampler.law, sampler.weight
        scripts += [[*sampler.taken[:turn], False] for turn in range(len(sampler.script), len(sampler.taken))]


def law(seed: int, *shape: int) -> torch.Tensor:
    """Random distributions over the vocabulary, some tokens likely and some rare."""
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(*shape, VOCABULARY, generator=generator)).softmax(-1)


def without(probs: torch.Tensor, token: int) -> torch.Tensor:
    rest = probs.index_fill(0, torch.tensor([token]), 0.0)
    return rest / rest.sum()


def full_row_chain(proposal):
    """Two tokens drawn from a drafter's own laws: all such drafts with their chances."""
    for first, second in product(range(VOCABULARY), repeat=2):
        laws = proposal[[0, first + 1]]
        yield Draft.chain([first, second], laws), float(laws[0, first] * laws[1, second])


def point_chain(proposal):
    """Two tokens that a deterministic drafter names."""
    yield Draft.chain([2, 4]), 1.0


def point_tree(proposal):
    """Four children named, one token of them twice, three of them continued."""
    yield Draft([2, 0, 2, 3, 1, 4], [-1, -1, -1, -1, 1, 2]), 1.0


def drawn_tree(proposal):
    """Two children drawn without replacement, each continued by a token drawn from the drafter's law."""
    for first, second in permutations(range(VOCABULARY), 2):
        rest = without(proposal[0], first)
        laws = torch.stack([proposal[0], rest, proposal[first + 1], proposal[second + 1]])
        for below in product(range(VOCABULARY), repeat=2):
            chance = proposal[0, first] * rest[second] * laws[2, below[0]] * laws[3, below[1]]
            yield Draft([first, second, *below], [-1, -1, 0, 1], laws), float(chance)


def misstated_tree(proposal):
    """Like drawn_tree, but the second child claims to be drawn from the law of the first."""
    for draft, chance in drawn_tree(proposal):
        yield Draft(draft.ids, draft.parents, draft.probs[[0, 0, 2, 3]]), chance


def emitted_law(drafts, target: torch.Tensor) -> torch.Tensor:
    """Exact law [V, V] of the first two emitted tokens; target [V + 1, V]: after the root and each first token."""
    law = torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64)
    for draft, drafted in drafts:
        logits = target[[0, *(token + 1 for token in draft.ids)]].log()
        for accepted, last, chance in outcomes(draft, logits):
            if not accepted:
                law += drafted * chance * last.double()[:, None] * target[1:]
            elif len(accepted) == 1:
                law[accepted[0]] += drafted * chance * last.double()
            else:
                law[accepted[0], accepted[1]] += drafted * chance
    return law


@pytest.mark.parametrize("drafter", [full_row_chain, point_chain, point_tree, drawn_tree])
@pytest.mark.parametrize("seed", [0, 1])
def test_first_two_tokens_follow_the_law_of_plain_sampling(drafter, seed):
    target, proposal = law(seed, VOCABULARY + 1), law(seed + 10, VOCABULARY + 1)
    expected = (target[:1].T * target[1:]).double()
    torch.testing.assert_close(emitted_law(drafter(proposal), target), expected, atol=1e-6, rtol=0)


def test_a_drafter_that_misstates_its_law_is_noticed():
    target, proposal = law(0, VOCABULARY + 1), law(10, VOCABULARY + 1)
    off = emitted_law(misstated_tree(proposal), target) - target[:1].T * target[1:]
    assert off.abs().max() > 1e-3


def test_counts_of_many_seeded_draws_pass_a_chi_square_test():
    target, proposal, trials = law(0, 1)[0], law(10, 1)[0], 3000
    sampler, counts = Sampler(1.0, seed=3), torch.zeros(VOCABULARY)
    for token in torch.multinomial(proposal, trials, replacement=True, generator=sampler.draft_generator).tolist():
        draft = Draft.chain([token], proposal[None])
        path = accept_sampled(draft, target.log().expand(2, -1), sampler)
        counts[token if path.nodes else path.next] += 1
    statistic = ((counts - trials * target) ** 2 / (trials * target)).sum()
    assert statistic < 18.5  # chi-square with 4 degrees of freedom exceeds this once in a thousand


def test_a_proposal_equal_to_the_target_is_always_accepted():
    probs = law(4, 6)
    sampler = Sampler(1.0, seed=0)
    for _ in range(100):
        ids = torch.multinomial(probs[:5], 1, generator=sampler.draft_generator)[:, 0].tolist()
        assert accept_sampled(Draft.chain(ids, probs[:5]), probs.log(), sampler).nodes == [0, 1, 2, 3, 4]


def test_a_proposal_without_overlap_is_never_accepted_and_leaves_the_target():
    target, proposal = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.2, 0.3, 0.5])
    ((accepted, last, chance),) = outcomes(Draft.chain([4], proposal[None]), target.log().expand(2, -1))
    assert (accepted, chance) == ([], 1.0)
    torch.testing.assert_close(last, target)


def test_a_residual_that_rounding_empties_falls_back_to_the_target():
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    proposal = torch.tensor([1.0 + 1e-6, 0.0, 0.0, 0.0, 0.0])
    sampler = Enumerator([False])
    assert accept_sampled(Draft.chain([0], proposal[None]), target.log().expand(2, -1), sampler).nodes == []
    torch.testing.assert_close(sampler.law, target)


@pytest.mark.parametrize("depth", [1, 4])
def test_mean_accepted_length_follows_the_sum_of_powers(depth):
    target, proposal = torch.tensor([0.6, 0.2, 0.1, 0.1, 0.0]), torch.tensor([0.3, 0.4, 0.1, 0.1, 0.1])
    rate = float(torch.minimum(target, proposal).sum())
    sampler, logits, rows = Sampler(1.0, seed=5), target.log().expand(depth + 1, -1), proposal.expand(depth, -1)
    rounds, total = 6_000, 0
    for _ in range(rounds):
        ids = torch.multinomial(proposal, depth, replacement=True, generator=sampler.draft_generator).tolist()
        total += len(accept_sampled(Draft.chain(ids, rows), logits, sampler).nodes)
    expected = sum(rate**power for power in range(1, depth + 1))
    assert total / rounds == pytest.approx(expected, rel=0.03)


def test_sampling_repeats_with_its_seed():
    draft, logits = Draft.chain([1, 2, 3], law(1, 3)), law(0, 4).log()
    first, again = Sampler(1.0, seed=9), Sampler(1.0, seed=9)
    for _ in range(30):
        assert accept_sampled(draft, logits, first) == accept_sampled(draft, logits, again)


def test_greedy_follows_the_argmax_down_the_tree():
    best = torch.tensor([1, 0, 4, 2, 3])  # after the root and after each node
    logits = torch.nn.functional.one_hot(best, VOCABULARY).float()
    draft = Draft([0, 1, 4, 0], [-1, -1, 1, 2])
    assert accept_greedy(draft, logits) == Path([1, 2], 2)
    assert accept_greedy(Draft(), logits[:1]) == Path([], 1)


def test_greedy_ties_go_to_the_lowest_token():
    assert accept_greedy(Draft.chain([3]), torch.zeros(2, VOCABULARY)) == Path([], 0)


def test_mask_of_a_tree_is_its_ancestors():
    draft = Draft([7, 8, 9, 7], [-1, -1, 0, 2])
    assert draft.depths == [1, 1, 2, 3]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert draft.mask().int().tolist() == expected


def rows(*best: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(best), VOCABULARY).float()


def test_a_mismatch_stands_if_it_passes_and_an_exact_sibling_goes_first():
    asked = []

    def passes(node, best):
        asked.append((node, best))
        return node != 3

    draft, logits = Draft([0, 1, 4, 0, 2], [-1, -1, 1, 2, 0]), rows(1, 0, 3, 2, 4, 0)
    assert accept_relaxed(draft, logits, set(), passes) == Path([1, 2], 2)
    assert asked == [(2, [1, 0, 3, 2, 4, 0]), (3, [1, 0, 3, 2, 4, 0])]


def test_the_first_child_is_the_one_that_may_pass():
    assert accept_relaxed(Draft([3, 4], [-1, -1]), rows(1, 2, 0), set(), lambda *_: True) == Path([0], 2)


@pytest.mark.parametrize("strict", [{2}, {1}])
def test_strict_tokens_are_neither_let_through_nor_replaced(strict):
    assert accept_relaxed(Draft.chain([2, 0]), rows(1, 0, 3), strict, lambda *_: True) == Path([], 1)


def test_nothing_passing_is_greedy():
    for seed in range(20):
        draft, logits = Draft.chain([1, 0, 2]), law(seed, 4)
        assert accept_relaxed(draft, logits, set(), lambda *_: False) == accept_greedy(draft, logits)
