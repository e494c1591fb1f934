"""Generate a ListOps expression and its value from (settings, seed, index), in compiled loops.

Nangia and Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning", NAACL-SRW 2018, with the settings of Long
Range Arena (Tay et al. 2021, `lra_benchmarks/data/listops.py`). Where the depth is below `max_depth`, a node is an
operator with probability ¼. Other nodes are digits. An operator has 2 … `max_args` arguments. Trees are sampled until
one has more than `min_length` and fewer than `max_length` tokens.

Token ids: 0 padding, 1 … 10 the digits 0 … 9, 11 … 14 the operators `[MIN [MAX [MED [SM`, 15 the closing bracket.
"""

import numpy as np
from numba import njit

from datamodules.files import PreparedDataError

TOKENS = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
FIRST_DIGIT = 1
MIN, MAX, MED, SUM_MOD, CLOSE = 11, 12, 13, 14, 15
OPERATOR_PROBABILITY = 0.25
TRIALS = 1_000_000  # far beyond what LRA's settings need


def draw_expression(
    seed: int, index: int, min_length: int, max_length: int, max_depth: int, max_args: int
) -> tuple[np.ndarray, int]:
    """Return the `index`-th expression of the stream with this seed.

    Returns:
        Token ids, uint8, of length strictly between `min_length` and `max_length`, and the value 0 … 9.

    Raises:
        PreparedDataError: when the settings give no such expression in a million trees.
    """
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 0]))
    tokens = np.empty(max_length, dtype=np.uint8)
    length, value = _draw(rng, tokens, min_length, max_depth, max_args)
    if length == 0:
        raise PreparedDataError(
            f"no expression of more than {min_length} and fewer than {max_length} tokens in {TRIALS:,} tries. Fix: "
            f"change data.min_length, data.max_length, data.max_depth={max_depth} or data.max_args={max_args}"
        )
    return tokens[:length].copy(), value


def longest_expression(max_depth: int, max_args: int) -> int:
    """Return the number of tokens of the largest tree, which is full at every level."""
    length = 1
    for _ in range(max_depth - 1):
        length = 2 + max_args * length
    return length


@njit(nogil=True, cache=True)
def _draw(rng, tokens, min_length, max_depth, max_args):
    for _ in range(TRIALS):
        length, value = _grow(rng, tokens, max_depth, max_args)
        if min_length < length < len(tokens):
            return length, value
    return 0, 0


@njit(nogil=True, cache=True)
def _grow(rng, tokens, max_depth, max_args):
    """Generate one tree depth first; return (length, value), with the buffer's length if the tree does not fit."""
    operator = np.zeros(max_depth, dtype=np.int64)
    wanted = np.zeros(max_depth, dtype=np.int64)
    count = np.zeros(max_depth, dtype=np.int64)
    arguments = np.zeros((max_depth, max_args), dtype=np.int64)
    length, depth = 0, 0
    while length < len(tokens):
        if depth + 1 < max_depth and rng.random() <= OPERATOR_PROBABILITY:
            operator[depth] = rng.integers(MIN, CLOSE)
            wanted[depth] = rng.integers(2, max_args + 1)
            count[depth] = 0
            tokens[length] = operator[depth]
            length += 1
            depth += 1
            continue
        value = rng.integers(0, 10)
        tokens[length] = FIRST_DIGIT + value
        length += 1
        while depth > 0:
            arguments[depth - 1, count[depth - 1]] = value
            count[depth - 1] += 1
            if count[depth - 1] < wanted[depth - 1]:
                break
            if length == len(tokens):
                return length, 0
            depth -= 1
            value = _apply(operator[depth], arguments[depth, : count[depth]])
            tokens[length] = CLOSE
            length += 1
        if depth == 0:
            return length, value
    return length, 0


@njit(nogil=True, cache=True)
def _apply(operator, arguments):
    if operator == MIN:
        return arguments.min()
    if operator == MAX:
        return arguments.max()
    if operator == SUM_MOD:
        return arguments.sum() % 10
    return int(np.median(arguments))  # rounds a half down, as the original does


def permute_arguments(tokens: np.ndarray, seed: int) -> np.ndarray:
    """Permute the arguments of each operator at random, as a function of `seed`.

    All four operators are symmetric, so the value stays.

    Args:
        tokens: ids of a whole expression with its brackets, `(N,)`.
        seed: at least 0.
    """
    return _permute(np.random.Generator(np.random.Philox(key=seed)), tokens)


@njit(nogil=True, cache=True)
def _permute(rng, tokens):
    """Copy subtrees, the next one on top of a stack; the children of an operator are shuffled on their way onto it."""
    end = np.zeros(len(tokens), dtype=np.int64)  # one past the subtree that starts here
    stack = np.zeros(len(tokens), dtype=np.int64)
    size = 0
    for place, token in enumerate(tokens):
        if token == CLOSE:
            size -= 1
            end[stack[size]] = place + 1
        elif token >= MIN:
            stack[size] = place
            size += 1
        else:
            end[place] = place + 1
    out = np.empty_like(tokens)
    length, size, stack[0] = 0, 1, 0
    while size > 0:
        size -= 1
        start = stack[size]
        out[length] = tokens[start]
        length += 1
        if MIN <= tokens[start] < CLOSE:
            stack[size] = end[start] - 1  # its bracket comes after its children
            first, size = size + 1, size + 1
            child = start + 1
            while child < end[start] - 1:
                other = rng.integers(first, size + 1)  # inside-out Fisher-Yates shuffle: all orders are equally likely
                stack[size] = stack[other]
                stack[other] = child
                size += 1
                child = end[child]
    return out


def evaluate(tokens: np.ndarray) -> int:
    """Evaluate an expression by plain recursion, to check the compiled code.

    Raises:
        ValueError: for tokens that are not one whole expression.
    """
    value, end = _evaluate_from([int(token) for token in tokens], 0)
    if end != len(tokens):
        raise ValueError(f"{len(tokens) - end} tokens follow the end of the expression")
    return value


def _evaluate_from(tokens: list[int], start: int) -> tuple[int, int]:
    if start == len(tokens):
        raise ValueError("the expression ends too early")
    if not FIRST_DIGIT <= tokens[start] < CLOSE:
        raise ValueError(f"token {tokens[start]} at {start} cannot start an expression")
    if tokens[start] < MIN:
        return tokens[start] - FIRST_DIGIT, start + 1
    arguments, position = [], start + 1
    while position < len(tokens) and tokens[position] != CLOSE:
        value, position = _evaluate_from(tokens, position)
        arguments.append(value)
    if position == len(tokens) or not arguments:
        raise ValueError(f"the operator at {start} has no arguments or is not closed")
    return _value_of(tokens[start], arguments), position + 1


def _value_of(operator: int, arguments: list[int]) -> int:
    if operator == MIN:
        return min(arguments)
    if operator == MAX:
        return max(arguments)
    if operator == MED:
        return int(np.median(arguments))
    return sum(arguments) % 10
