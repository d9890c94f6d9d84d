"""A verifier of one's own: it says whether an answer is right. Written by `sieve init --task own`."""

from collections.abc import Mapping
from typing import Any

from sieve import Judgement


class MyVerifier:
    name = "mine"  # as in data.verifier and verifier.serve
    version = "1"  # change it whenever the same answer could get another verdict
    reasons = frozenset({"equal", "different", "no_answer"})

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """`record`: the fields of data.columns.record. `answer`: what the model wrote, which is not to be trusted.

        A wrong answer is a `fail`, never an exception; `error` says that nothing can be said about it.
        """
        lines = answer.split("\n")
        said, right = lines[-1].strip(), str(record["answer"])
        if not said:
            return Judgement("fail", "no_answer")
        if said != right:
            return Judgement("fail", "different", detail=f"{said[:200]!r} is not {right!r}")
        return Judgement("pass", "equal", answer=right)  # `answer`: two right answers are the same if these are equal
