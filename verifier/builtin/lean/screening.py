"""What a tactic block may not contain, decided before Lean sees it, each refusal with a reason code.

This is the first of three lines: words here, tokens of the parsed command and the final environment in checker.lean.
It refuses what no proof needs and what reaches outside the kernel's care: holes, the compiler as an oracle, axioms,
declarations and syntax of one's own, attributes, scopes, options, commands, code run while elaborating. A refusal is a
wrong answer, never trouble. It does not try to say whether a proof is right.
"""

from __future__ import annotations

import re
import unicodedata

from verifier.builtin.lean.lexer import Source, Token, Unreadable, read

MAX_LENGTH = 64 * 1024
"""Characters of a tactic block."""

MAX_BRACKETS = 200
"""Brackets open at once: Lean's parser and elaborator recurse on them, and a full stack kills the process."""

MAX_HEARTBEATS = 1_000_000
MAX_RECURSION = 10_000

REASONS = frozenset(
    {"sorry", "compiled_evaluation", "declaration", "unsafe_code", "syntax_extension", "attribute", "scope", "option"}
    | {"command", "elaboration_code", "bad_character", "too_long", "empty"}
    | {"unterminated_comment", "unterminated_string", "odd_comment", "odd_identifier", "too_deep"}
)

_COMPONENTS = {
    # Looked for as any component of an identifier, quoted or not: `Lean.ofReduceBool`, `_root_.«sorryAx»`.
    "sorry": "sorry sorryAx mkSorry admit stop",
    "compiled_evaluation": "native_decide native bv_decide bv_check nativeDecide decideNative ofReduceBool ofReduceNat "
    "reduceBool reduceNat trustCompiler",
    "unsafe_code": "unsafe unsafeCast unsafeIO unsafeBaseIO unsafeEIO implemented_by extern csimp lcProof lcCast lcAny "
    "lcUnreachable evalConst addDeclWithoutChecking",
    "elaboration_code": "run_tac run_cmd run_elab run_meta by_elab include_str initialize builtin_initialize "
    "compileDecl liftCommandElabM elabCommand addDecl IO EIO BaseIO System FS EStateM MetaM CoreM TermElabM TacticM "
    "CommandElabM polyrith dbgTrace dbg_trace",
}
_WORDS = {
    # Looked for as a whole identifier: they are keywords, and as fields (`h.end`) they mean nothing.
    "declaration": "axiom constant theorem lemma example def abbrev opaque inductive structure class deriving mutual "
    "irreducible_def alias proof_wanted partial noncomputable private protected axioms",
    "syntax_extension": "macro macro_rules syntax notation notation3 infix infixl infixr prefix postfix elab "
    "elab_rules declare_syntax_cat binder_predicate simproc simproc_decl register_option unif_hint register_simp_attr "
    "declare_aesop_rule_sets",
    "attribute": "attribute instance add_decl_doc add_aesop_rules seal unseal grind_pattern",
    "scope": "open namespace section end local scoped export universe universes variable variables include omit",
    "command": "import module prelude public meta assert_not_exists assert_no_sorry suppress_compilation",
}
_HASHED = (
    "eval exit print check check_failure reduce synth guard guard_msgs guard_expr help find where min_imports time "
    "count_heartbeats simp norm_num ring conv lint import explode html widget show_kind"
)
_PARTS = {word: reason for reason, words in _COMPONENTS.items() for word in words.split()}
_WHOLE = {word: reason for reason, words in _WORDS.items() for word in words.split()}
_HASHES = frozenset(_HASHED.split())

OPTIONS: dict[str, int | None] = {
    "maxHeartbeats": MAX_HEARTBEATS,
    "synthInstance.maxHeartbeats": MAX_HEARTBEATS,
    "maxRecDepth": MAX_RECURSION,
    "exponentiation.threshold": 10_000,
    "synthInstance.maxSize": 10_000,
    "linter.all": None,
    "linter.unusedVariables": None,
    "linter.unusedTactic": None,
    "linter.style.setOption": None,
    "autoImplicit": None,
    "relaxedAutoImplicit": None,
    "tactic.hygienic": None,
}
"""Options a proof may set (`set_option … in`), with the largest number; 0 would mean without limit and is refused."""


class Refused(ValueError):
    """The tactic block may not be tried; `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def screen(proof: str) -> str:
    """The tactic block with comments blanked out, fit to be given to Lean. Raises Refused."""
    if len(proof) > MAX_LENGTH:
        raise Refused("too_long", f"{len(proof)} characters, at most {MAX_LENGTH}")
    characters(proof)
    try:
        source = read(proof)
    except Unreadable as unreadable:
        raise Refused(unreadable.reason, unreadable.detail) from unreadable
    if not source.tokens:
        raise Refused("empty", "no tactic")
    _brackets(source)
    _tokens(source)
    return source.blank.rstrip()


def characters(text: str) -> None:
    """Refuse control and format characters and surrogates, which no reader sees. Raises Refused."""
    for place, sign in enumerate(text):
        if sign not in "\n" and not " " <= sign <= "~" and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co"):
            raise Refused("bad_character", f"U+{ord(sign):04X} at {place}")


def _brackets(source: Source) -> None:
    depth = 0
    for token in source.tokens:
        if token.text in _OPENING:
            depth += 1
            if depth > MAX_BRACKETS:
                raise Refused("too_deep", f"more than {MAX_BRACKETS} open brackets")
        elif token.text in _CLOSING:
            depth -= 1


_OPENING, _CLOSING = frozenset("([{⟨⌊⌈"), frozenset(")]}⟩⌋⌉")


def _tokens(source: Source) -> None:
    tokens = source.tokens
    for place, token in enumerate(tokens):
        if token.kind in ("identifier", "string"):
            _word(token)
        if token.kind == "identifier" and token.text == "set_option":
            _option(tokens, place)
        if token.text == "@" and _next(tokens, place) == "[":
            raise Refused("attribute", "@[")
        if token.text == "#" and (token.line_start or _next(tokens, place) in _HASHES):
            raise Refused("command", f"#{_next(tokens, place)}"[:40])
        if token.text in ("eval", "elab_stx") and _next(tokens, place) == "%":
            raise Refused("elaboration_code", f"{token.text}%")


def _word(token: Token) -> None:
    for part in token.parts:
        # A name that only normalisation tells apart from a forbidden one is as good as that one.
        plain = unicodedata.normalize("NFKC", part)
        pieces = {plain, plain.rstrip("'!?"), *plain.split(".")}
        for piece in pieces:
            if piece in _PARTS:
                raise Refused(_PARTS[piece], token.text[:80])
    if token.kind == "identifier":
        whole = token.text.strip("«»").rstrip("!?'")
        if whole in _WHOLE:
            raise Refused(_WHOLE[whole], whole)


def _option(tokens: tuple[Token, ...], place: int) -> None:
    """`set_option NAME VALUE in`, NAME on the list and VALUE within its limit."""
    name = _next(tokens, place)
    value, then = _next(tokens, place + 1), _next(tokens, place + 2)
    if name not in OPTIONS:
        raise Refused("option", f"set_option {name}"[:80])
    most = OPTIONS[name]
    if then != "in":
        raise Refused("option", f"set_option {name} without `in`")
    if most is None:
        if value not in ("true", "false"):
            raise Refused("option", f"set_option {name} {value}"[:80])
    elif not re.fullmatch(r"[0-9_]{1,12}", value) or not 0 < int(value.replace("_", "") or 0) <= most:
        raise Refused("option", f"set_option {name} {value}: from 1 to {most}"[:80])


def _next(tokens: tuple[Token, ...], place: int) -> str:
    return tokens[place + 1].text if place + 1 < len(tokens) else ""
