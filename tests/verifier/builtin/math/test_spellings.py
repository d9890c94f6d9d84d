r"""Random answers, spelled again without changing their meaning, and changed so that it must change.

Re-spelling: white space, equivalent LaTeX, fonts, order of sets, names, equivalent expressions. Changing: another
number, sign, order of a tuple, bracket, unit, base, operator. One hypothesis strategy each, over answers of every kind.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifier.builtin.math.verifier import MathAnswer


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathAnswer]:
    verifier = MathAnswer()
    yield verifier
    verifier.close()


def fraction(top: int, bottom: int) -> str:
    return rf"{'-' if top * bottom < 0 else ''}\frac{{{abs(top)}}}{{{abs(bottom)}}}"


atoms = st.one_of(
    st.integers(0, 2000).map(str),
    st.builds(fraction, st.integers(1, 99), st.integers(2, 99)),
    st.integers(2, 50).map(lambda n: rf"\sqrt{{{n * n + 1}}}"),
    st.integers(1, 12).map(lambda n: rf"{n}\pi"),
    st.integers(1, 9).map(lambda n: f"x^{{{n + 1}}}+{n}"),
    st.integers(2, 9).map(lambda n: rf"\ln {n}"),
)
distinct = st.lists(atoms, min_size=2, max_size=4, unique=True)
answers = st.one_of(
    atoms,
    distinct.map(lambda members: f"({', '.join(members)})"),
    distinct.map(lambda members: rf"\{{{', '.join(members)}\}}"),
    st.lists(st.integers(-20, 20), min_size=4, max_size=4, unique=True).map(
        lambda n: rf"\begin{{pmatrix}} {n[0]} & {n[1]} \\ {n[2]} & {n[3]} \end{{pmatrix}}"
    ),
    st.integers(-20, 20).map(lambda n: rf"(-\infty, {n})"),
    st.integers(1, 500).map(lambda n: rf"{n}\text{{ cm}}^2"),
    st.integers(2, 9).map(lambda base: f"{'1' * (base + 1)}_{{{base}}}"),
)


def respelled(answer: str, draw: random.Random) -> str:
    """The same answer in another spelling."""
    text = answer
    if draw.random() < 0.5:
        text = text.replace(r"\frac", draw.choice([r"\dfrac", r"\tfrac", r"\frac"]))
    if draw.random() < 0.5:
        text = text.replace("(", r"\left(").replace(")", r"\right)")
    if draw.random() < 0.5:
        text = re.sub(r"(?<=[ ,&}])(?=\S)", lambda _: draw.choice(["", " ", r"\,", r"\;"]), text)
    if draw.random() < 0.3:
        text = text.replace("pmatrix", "bmatrix")
    if answer.startswith(r"\{") and draw.random() < 0.8:
        members = answer[2:-2].split(", ")
        draw.shuffle(members)
        text = rf"\{{ {', '.join(members)} \}}"
    wrap = draw.choice(["{}", "${}$", r"\displaystyle {}", r"\color{{blue}}{{{}}}", r"\mathbf{{{}}}", "{}."])
    text = wrap.format(text)
    if (
        not answer.startswith((r"\{", "(", r"\begin"))
        and "x" not in answer
        and "_" not in answer
        and draw.random() < 0.3
    ):
        text = f"x = {text}"
    return text


CHANGES = (
    (r"\d+", lambda found: str(int(found[0]) + 1)),
    (r"\+", lambda found: "-"),
    (r"\\pi", lambda found: "e"),
    (r"cm\}\^2", lambda found: "cm}^3"),
    (r"\)$", lambda found: "]"),
    (r"\\sqrt", lambda found: r"\sqrt[3]"),
)


def changed(answer: str, draw: random.Random) -> str:
    """Another answer: one thing in it is not what it was."""
    if answer.startswith("(") and "infty" not in answer and draw.random() < 0.3:
        members = answer[1:-1].split(", ")
        return f"({', '.join([*members[1:], members[0]])})"
    fitting = [change for change in CHANGES if re.search(change[0], answer)]
    pattern, change = draw.choice(fitting)
    places = list(re.finditer(pattern, answer))
    found = draw.choice(places)
    return answer[: found.start()] + change(found) + answer[found.end() :]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers, st.integers(0, 2**32))
def test_another_spelling_passes(verifier: MathAnswer, answer: str, seed: int) -> None:
    text = respelled(answer, random.Random(seed))
    said = verifier.judge({"answer": answer}, rf"\boxed{{{text}}}")
    assert said.outcome == "pass", (answer, text, said)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers, st.integers(0, 2**32))
@pytest.mark.slow
def test_another_meaning_fails(verifier: MathAnswer, answer: str, seed: int) -> None:
    text = changed(answer, random.Random(seed))
    said = verifier.judge({"answer": answer}, rf"\boxed{{{text}}}")
    assert said.outcome == "fail", (answer, text, said)
