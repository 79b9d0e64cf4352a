from __future__ import annotations

import pytest
import torch

from elvi.core.connected import connected, unite, unite_reference


def pairs(nodes: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(seed))


def by_hand(edges: torch.Tensor, total: int) -> list[int]:
    """From every node not yet reached, in order, all that can be reached."""
    near: dict[int, set[int]] = {node: set() for node in range(total)}
    for a, b in edges.T.tolist():
        near[a].add(b)
        near[b].add(a)
    root: dict[int, int] = {}
    for start in range(total):
        waiting = [start] if start not in root else []
        while waiting:
            node = waiting.pop()
            root[node] = start
            waiting += [other for other in near[node] if other not in root]
    return [root[node] for node in range(total)]


@pytest.mark.parametrize("count", [0, 1, 40, 90, 400])
@pytest.mark.parametrize("seed", range(4))
def test_every_node_knows_the_lowest_that_it_is_connected_with(count, seed, device):
    edges = pairs(100, count, seed)
    assert connected(edges.to(device), 100).tolist() == by_hand(edges, 100)


@pytest.mark.parametrize("count", [0, 1, 40, 90, 400])
@pytest.mark.parametrize("seed", range(4))
def test_kernel_and_torch_find_the_same(count, seed):
    edges = pairs(100, count, seed)
    assert unite(edges.numpy(), 100).tolist() == unite_reference(edges, 100).tolist()


def test_a_chain_ends_at_its_first_node_whatever_the_order_of_its_links():
    chain = torch.stack([torch.arange(49), torch.arange(1, 50)])
    for seed in range(5):
        order = torch.randperm(49, generator=torch.Generator().manual_seed(seed))
        mixed = chain[:, order] if seed % 2 else chain[:, order].flip(0)
        assert connected(mixed, 50).tolist() == unite_reference(mixed, 50).tolist() == [0] * 50


def test_a_link_between_two_old_components_moves_all_of_the_later_one():
    edges = torch.tensor([[5, 6, 1, 2, 7], [6, 7, 2, 3, 3]])
    assert connected(edges, 9).tolist() == [0, 1, 1, 1, 4, 1, 1, 1, 8]
