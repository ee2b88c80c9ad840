"""Stage 1 of retrieval against all scores written out: all batches at once, and one batch and some tokens at a time."""

# Letters: as in candidate_scores.py.

import pytest
import torch
from torch import Tensor

from ultramem_kernels.candidates import best_candidates_reference
from ultramem_megatron.memory import candidate_scores
from ultramem_megatron.memory.candidate_scores import best_scores

TOKENS, BATCHES, RANKS, WIDTH, SIDE, CANDIDATES = 11, 4, 2, 6, 23, 5


@pytest.mark.parametrize("least_products", [0, 2**23], ids=["part by part", "at once"])
def test_scores_and_their_gradients(least_products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_scores, "LEAST_PRODUCTS", least_products)
    monkeypatch.setattr(candidate_scores, "PART_ELEMENTS", 3 * RANKS * SIDE)  # three tokens a part, and two are left
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(TOKENS, BATCHES, RANKS, WIDTH, generator=generator).requires_grad_()
    keys = torch.randn(BATCHES, SIDE, RANKS, WIDTH, generator=generator).requires_grad_()
    direction = torch.randn(BATCHES, RANKS, generator=generator)
    index, found = best_scores(queries, keys, direction, CANDIDATES)
    expected_index, expected = written_out(queries, keys, direction)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, generator=generator)
    gradients = torch.autograd.grad(found, (queries, keys), cotangent)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, (queries, keys), cotangent), strict=True):
        torch.testing.assert_close(ours, theirs)


def written_out(queries_TBrd: Tensor, keys_BSrd: Tensor, direction_Br: Tensor) -> tuple[Tensor, Tensor]:
    scores_BrTS = torch.einsum("tbrd,bsrd->brts", queries_TBrd, keys_BSrd)
    index_BTc = best_candidates_reference(scores_BrTS.detach(), direction_Br, CANDIDATES)
    best_BrTc = scores_BrTS.gather(3, index_BTc.unsqueeze(1).expand(-1, RANKS, -1, -1))
    return index_BTc.transpose(0, 1), best_BrTc.permute(2, 0, 1, 3)
