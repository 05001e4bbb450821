"""Chains of tags against the enumeration of all sequences."""

from itertools import product

import pytest
import torch

from hf_multitask.modeling.chain import LinearChain, Scores, best_tags, in_front, log_marginals, log_partition, taken
from hf_multitask.modeling.schemes import allowed, is_allowed
from hf_multitask.modeling.structure import Structure

# Which tokens count: all of them, some behind padding and beside parts of words, one, none.
THERE = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
LABELS = {
    "BIO": ["O", "B-A", "I-A", "B-C", "I-C"],
    "IOB1": ["O", "B-A", "I-A", "I-C"],
    "BIOES": ["O", "B-A", "I-A", "E-A", "S-A"],
    "BILOU": ["L-A", "O", "U-A", "B-A", "I-A"],
}


def chain_of(tags, seed=0):
    torch.manual_seed(seed)
    chain = LinearChain(tags).double()
    for parameter in chain.parameters():
        torch.nn.init.normal_(parameter)
    return chain


def logits_of(tags, seed=1):
    return torch.randn(*THERE.shape, tags, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def enumerated(logits_TC, scores):
    """All sequences with their scores."""
    length, tags = logits_TC.shape
    found = torch.tensor(list(product(range(tags), repeat=length)))
    single = logits_TC[torch.arange(length), found].sum(1)
    steps = scores.steps[found[:, :-1], found[:, 1:]].sum(1)
    return found, scores.starts[found[:, 0]] + single + steps + scores.ends[found[:, -1]]


def test_the_loss_is_the_probability_among_all_sequences():
    chain, logits = chain_of(3), logits_of(3)
    labels = torch.randint(3, THERE.shape, generator=torch.Generator().manual_seed(2))
    expected = []
    for row, there in enumerate(THERE):
        if not there.any():
            expected.append(torch.tensor(0.0, dtype=torch.float64))
            continue
        found, scores = enumerated(logits[row][there], chain.scores(logits))
        expected.append(-scores.log_softmax(0)[(found == labels[row][there]).all(1)].squeeze())
    torch.testing.assert_close(chain(logits, labels, THERE), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_partition_marginals_and_best_sequence_are_those_of_the_enumeration():
    chain, logits = chain_of(3), logits_of(3)
    scores = chain.scores(logits)
    order, there = in_front(THERE, cut=True)
    assert there.sum(1).tolist() == THERE.sum(1).tolist() and order.shape[1] == 5
    compact = taken(logits, order)
    partition, marginals, best = (one(compact, there, scores) for one in (log_partition, log_marginals, best_tags))
    for row in range(3):  # the last one is empty
        own = logits[row][THERE[row]]
        found, values = enumerated(own, scores)
        torch.testing.assert_close(partition[row], values.logsumexp(0), rtol=1e-12, atol=1e-12)
        assert torch.equal(best[row][: len(own)], found[values.argmax()])
        chances = values.softmax(0)
        for token, tag in product(range(len(own)), range(3)):
            true = chances[found[:, token] == tag].sum()
            torch.testing.assert_close(marginals[row, token, tag].exp(), true, rtol=1e-10, atol=1e-12)


def test_a_batch_is_its_rows_one_by_one_whatever_lies_between_and_beside_them():
    chain, logits = chain_of(4), logits_of(4)
    labels = torch.randint(4, THERE.shape, generator=torch.Generator().manual_seed(3))
    structure = Structure("crf", "IOB1", tuple(LABELS["IOB1"]))
    losses, tagged = chain(logits, labels, THERE), structure.tagged(logits, THERE, chain)
    alone = [chain(logits[row : row + 1][:, there], labels[row : row + 1][:, there], there[there][None]) for row, there in enumerate(THERE)]  # fmt: skip
    torch.testing.assert_close(losses, torch.cat(alone), rtol=1e-12, atol=1e-12)
    parts = [structure.tagged(logits[row][there][None], there[there][None], chain) for row, there in enumerate(THERE)]
    assert torch.equal(tagged.tags, torch.cat([part.tags for part in parts]))
    torch.testing.assert_close(tagged.scores, torch.cat([part.scores for part in parts]), rtol=1e-12, atol=1e-12)
    spoiled = logits.masked_fill(~THERE.unsqueeze(2), 1e4)
    torch.testing.assert_close(chain(spoiled, labels.masked_fill(~THERE, -100), THERE), losses)


def test_gradients_are_those_of_finite_differences():
    chain, logits = chain_of(3), logits_of(3).requires_grad_()
    labels = torch.randint(3, THERE.shape, generator=torch.Generator().manual_seed(4))
    parameters = [parameter.detach().clone().requires_grad_() for parameter in chain.parameters()]
    names = [name for name, _ in chain.named_parameters()]

    def loss(logits, *parameters):
        return torch.func.functional_call(chain, dict(zip(names, parameters)), (logits, labels, THERE))

    assert torch.autograd.gradcheck(loss, (logits, *parameters))
    loss(logits, *parameters).sum().backward()
    assert not logits.grad[~THERE].any() and logits.grad[THERE].any()


def test_a_new_chain_is_a_softmax():
    logits = logits_of(5)
    labels = torch.randint(5, THERE.shape, generator=torch.Generator().manual_seed(5))
    chain = LinearChain(5).double()
    single = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(chain(logits, labels, THERE), single.masked_fill(~THERE, 0).sum(1))
    found = Structure("crf", None, tuple("abcde")).tagged(logits, THERE, chain)
    assert torch.equal(found.tags, logits[THERE].argmax(-1))
    torch.testing.assert_close(found.scores, logits[THERE].softmax(-1).amax(-1))


@pytest.mark.parametrize("scheme", LABELS)
def test_constrained_tags_are_the_best_sequence_that_is_allowed(scheme):
    names = LABELS[scheme]
    structure = Structure("constrained", scheme, tuple(names))
    zero = torch.zeros(len(names), dtype=torch.float64)
    zeros, valid, changed = Scores(zero, zero, zero.expand(len(names), -1)), {}, 0
    for seed in range(20):
        logits = 3 * logits_of(len(names), seed)
        found = structure.tagged(logits, THERE, None)
        single = logits[THERE].softmax(-1).gather(1, found.tags.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(found.scores, single)
        changed += int((found.tags != logits[THERE].argmax(-1)).any())
        parts = found.tags.split(THERE.sum(1).tolist())
        for row in range(3):
            own = logits[row][THERE[row]]
            sequences, values = enumerated(own, zeros)
            if len(own) not in valid:
                tags = ([names[tag] for tag in sequence] for sequence in sequences.tolist())
                valid[len(own)] = torch.tensor([is_allowed(sequence, scheme) for sequence in tags])
            best = values.masked_fill(~valid[len(own)], -torch.inf).argmax()
            assert torch.equal(parts[row], sequences[best])
    assert changed > 10  # random logits are rarely best in an order that is allowed


@pytest.mark.parametrize("decoding", ["constrained", "crf"])
@pytest.mark.parametrize("scheme", LABELS)
def test_no_sequence_is_ever_impossible(scheme, decoding):
    names = LABELS[scheme]
    chain = chain_of(len(names), 7).float() if decoding == "crf" else None
    logits = 10 * torch.randn(200, 17, len(names), generator=torch.Generator().manual_seed(8))
    there = torch.rand(200, 17, generator=torch.Generator().manual_seed(9)) < 0.7
    found = Structure(decoding, scheme, tuple(names)).tagged(logits, there, chain)
    assert found.scores.isfinite().all() and (found.scores >= 0).all() and (found.scores <= 1 + 1e-5).all()
    for part in found.tags.split(there.sum(1).tolist()):
        assert is_allowed([names[tag] for tag in part.tolist()], scheme)


@pytest.mark.parametrize(
    ("scheme", "good", "bad"),
    [
        ("BIO", ["", "O", "B-A I-A I-A B-A", "B-A B-C I-C O"], ["I-A", "O I-A", "B-A I-C", "B-A O I-A"]),
        ("IOB1", ["I-A I-A", "I-A B-A I-A", "I-A I-C", "O I-C O"], ["B-A", "O B-A", "I-C B-A"]),
        ("BIOES", ["S-A S-A", "B-A E-A", "B-A I-A E-A O"], ["B-A", "E-A", "B-A O", "B-A B-A E-A", "I-A", "S-A E-A", "B-A E-C"]),
        ("BILOU", ["U-A U-A", "B-A L-A", "B-A I-A L-A O"], ["B-A", "L-A", "B-A O", "B-A B-A L-A", "U-A L-A", "B-A U-A"]),
    ],
)  # fmt: skip
def test_what_a_scheme_allows(scheme, good, bad):
    assert all(is_allowed(tags.split(), scheme) for tags in good)
    assert not any(is_allowed(tags.split(), scheme) for tags in bad)


def test_rules_are_kept_by_names_and_scheme():
    starts, ends, steps = allowed(("O", "B-A", "I-A"), "BIO")
    assert starts.tolist() == [True, True, False] and ends.all()
    assert steps.tolist() == [[True, True, False], [True, True, True], [True, True, True]]
