"""The Countdown task: its problems, every right answer to each, their text form, and the tokenizer.

A problem is 3 or 4 numbers in 1 … 13 (repeats allowed) and a target in 1 … 60. A right answer is an expression with
`+ - * / ( )` that uses each number exactly once and equals the target in rational arithmetic. Two expressions that
differ only in the order or nesting of a sum or a product are one answer, with one canonical text. Sampled answers are
judged by the verifier `arithmetic`; the training set of the base model is chosen in make_base.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import combinations, combinations_with_replacement
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NUMBERS = range(1, 14)
SIZES = (3, 4)
TARGETS = range(1, 61)
MAX_NEW_TOKENS = 14
"""The longest right answer has 11 tokens (`( 1 + 2 ) * ( 3 + 4 )`) and the end token; wrong ones may have two more."""

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


class Problem(NamedTuple):
    """A problem, with `numbers` ascending, so that problems with the same multiset and target are equal."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        return f"numbers {' '.join(map(str, self.numbers))} target {self.target} :"

    def line(self) -> dict[str, Any]:
        """One line of a prompt file."""
        record = {"numbers": list(self.numbers), "target": self.target}
        return {"prompt": self.prompt, "verifier": "arithmetic", "record": record}


class Expression(NamedTuple):
    """A sum (`+`), a product (`*`) or one number (empty kind), flattened. `up` are the texts of its terms or factors,
    `down` those of the subtracted or dividing ones, sorted. The value is top / bottom, not reduced."""

    top: int
    bottom: int
    kind: str
    up: tuple[str, ...]
    down: tuple[str, ...]

    @property
    def text(self) -> str:
        if not self.kind:
            return self.up[0]
        inverse = "-" if self.kind == "+" else "/"
        return f" {self.kind} ".join(self.up) + "".join(f" {inverse} {part}" for part in self.down)


def solutions(numbers: tuple[int, ...]) -> dict[int, list[str]]:
    """Every right answer with `numbers` (2 to 4 of them): target in TARGETS -> canonical texts, sorted."""
    found: dict[int, set[str]] = {}
    for expression in _joined(tuple(sorted(numbers)), only_targets=True):
        found.setdefault(expression.top // expression.bottom, set()).add(expression.text)
    return {target: sorted(texts) for target, texts in sorted(found.items())}


def multisets(size: int) -> Iterator[tuple[int, ...]]:
    """Every choice of `size` numbers, ascending."""
    return combinations_with_replacement(NUMBERS, size)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: 60 integers, 6 signs, 3 prompt words and 3 special tokens. No token is added on encoding."""
    words = [PAD, EOS, UNKNOWN, "numbers", "target", ":", "+", "-", "*", "/", "(", ")", *map(str, TARGETS)]
    words_to_ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(words_to_ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",  # prompts of both lengths end in the same column of a batch
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


@cache
def _expressions(numbers: tuple[int, ...]) -> tuple[Expression, ...]:
    """Every distinct expression over `numbers` (ascending), whatever its value."""
    if len(numbers) == 1:
        return (Expression(numbers[0], 1, "", (str(numbers[0]),), ()),)
    return tuple({expression.text: expression for expression in _joined(numbers)}.values())


def _joined(numbers: tuple[int, ...], *, only_targets: bool = False) -> Iterator[Expression]:
    """Every combination, by one operation, of expressions over two complementary parts of `numbers`; may repeat."""
    wanted = set(TARGETS)
    for left_part, right_part in _splits(numbers):
        for a in _expressions(left_part):
            for b in _expressions(right_part):
                for kind, x, y, inverted in (
                    ("+", a, b, False),
                    ("+", a, b, True),
                    ("+", b, a, True),
                    ("*", a, b, False),
                    ("*", a, b, True),
                    ("*", b, a, True),
                ):
                    top, bottom = _value(kind, x, y, inverted)
                    if bottom == 0:
                        continue
                    # Building texts costs more than arithmetic: skip early what is not wanted.
                    if only_targets and (top % bottom or top // bottom not in wanted):
                        continue
                    x_up, x_down = _parts(x, kind)
                    y_up, y_down = _parts(y, kind)
                    if inverted:
                        y_up, y_down = y_down, y_up
                    yield Expression(top, bottom, kind, _ordered(x_up + y_up), _ordered(x_down + y_down))


def _splits(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    indices = range(1, len(numbers))
    found = set()
    for size in range(len(numbers) - 1):
        for chosen in combinations(indices, size):
            left = tuple(numbers[i] for i in (0, *chosen))
            found.add((left, tuple(numbers[i] for i in indices if i not in chosen)))
    return found


def _value(kind: str, x: Expression, y: Expression, inverted: bool) -> tuple[int, int]:
    if kind == "+":
        return x.top * y.bottom + (-1 if inverted else 1) * y.top * x.bottom, x.bottom * y.bottom
    return (x.top * y.bottom, x.bottom * y.top) if inverted else (x.top * y.top, x.bottom * y.bottom)


def _parts(expression: Expression, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The expression as terms of a sum or factors of a product; merged if it is of the same kind."""
    if expression.kind == kind:
        return expression.up, expression.down
    needs_parentheses = kind == "*" and expression.kind == "+"
    return (f"( {expression.text} )" if needs_parentheses else expression.text,), ()


@lru_cache(maxsize=1 << 16)
def _ordered(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Compound parts first, then the larger number first."""
    return tuple(sorted(parts, key=lambda part: (-part.count(" "), -int(part) if part.isdigit() else 0, part)))
