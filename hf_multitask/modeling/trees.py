"""Dependency trees: the best one for the scores of all pairs of words, and what a list of heads is that is none.

The head of a word is the number of another word, counted from 1, or 0 for the root of the tree.
"""

from collections.abc import Sequence

import numpy as np


def best_tree(scores: np.ndarray) -> list[int]:
    """The heads of n words that make the tree with the highest sum of scores, in which one word has the head 0.

    The algorithm of Chu, Liu and Edmonds (Optimum Branchings, 1967, section 3): every node takes its best head, a cycle
    becomes a node, and the rest follows from the tree of the smaller graph. Where several words would have the head 0,
    this costs each of them more than all other scores together can differ, so that one remains.

    Args:
        scores: (n, n + 1), of word i + 1 with head j; those of a word with itself are not read.
    """
    count = len(scores)
    if not count:
        return []
    given = np.nan_to_num(np.asarray(scores, dtype=np.float64))
    itself = np.arange(count), np.arange(1, count + 1)
    given[itself] = -np.inf
    heads = [int(head) for head in given.argmax(1)]
    if heads.count(0) == 1 and not find_cycle(heads):
        return heads
    finite = np.isfinite(given)
    given[:, 0] -= count * (given[finite].max() - given[finite].min()) + 1
    nodes = np.vstack([np.full(count + 1, -np.inf), given])
    return _arborescence(nodes)[1:]


def find_cycle(heads: Sequence[int]) -> list[int]:
    """The words of a cycle among the heads of words, in the order of heads; empty if there is none."""
    done = [False] * (len(heads) + 1)
    done[0] = True
    for start in range(1, len(heads) + 1):
        path: list[int] = []
        word = start
        while not done[word]:
            done[word] = True
            path.append(word)
            word = heads[word - 1]
        if word in path:
            return path[path.index(word) :]
    return []


def _arborescence(scores: np.ndarray) -> list[int]:
    """The heads of the nodes of a graph in which node 0 is the root; the first of them means nothing.

    Args:
        scores: (m, m), of a node with a head; minus infinity where there is no arc.
    """
    heads = [0, *(int(head) for head in scores[1:].argmax(1))]
    cycle = find_cycle(heads[1:])
    if not cycle:
        return heads
    rest = [node for node in range(len(heads)) if node not in set(cycle)]
    own = scores[cycle, [heads[node] for node in cycle]]
    entering = scores[np.ix_(cycle, rest)] - own[:, None]  # what it costs to break the cycle at a node
    leaving = scores[np.ix_(rest, cycle)]
    small = np.full((len(rest) + 1, len(rest) + 1), -np.inf)
    small[:-1, :-1] = scores[np.ix_(rest, rest)]
    small[-1, :-1] = entering.max(0)
    small[:-1, -1] = leaving.max(1)
    found = _arborescence(small)
    for place, node in enumerate(rest[1:], 1):
        head = found[place]
        heads[node] = cycle[int(leaving[place].argmax())] if head == len(rest) else rest[head]
    head = found[-1]
    heads[cycle[int(entering[:, head].argmax())]] = rest[head]
    return heads
