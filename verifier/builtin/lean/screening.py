"""The screening of a tactic block before Lean sees it; each refusal has a reason code.

This is the first of three lines of defence: words here; options, tokens, names and configurations of the parsed command
in checker.lean; then the kernel, on which alone it depends that nothing false passes. Screening gives refusals a
reason before Lean is asked: holes, the compiler as an oracle, axioms, new declarations and syntax, attributes, scopes,
options, commands, and code run during elaboration. A refused block is a wrong answer, never an error. Only answers
are screened; the record is trusted.
"""

from __future__ import annotations

import re
import unicodedata

from verifier.builtin.failed import Failed
from verifier.builtin.lean.lexer import Source, Token, read

MAX_LENGTH = 64 * 1024
"""Characters of a tactic block."""

MAX_BRACKETS = 200
"""Brackets open at once: Lean's parser and elaborator recurse on them, and a stack overflow kills the process."""

MAX_HEARTBEATS = 1_000_000
MAX_RECURSION = 100_000

REASONS = frozenset(
    {"sorry", "compiled_evaluation", "declaration", "unsafe_code", "syntax_extension", "attribute", "scope", "option"}
    | {"command", "elaboration_code", "bad_character", "too_long", "empty"}
    | {"unterminated_comment", "unterminated_string", "odd_comment", "odd_identifier", "odd_number", "odd_quote"}
    | {"odd_string", "too_deep"}
)

_COMPONENTS = {
    # Refused as any component of an identifier, quoted or not: `Lean.ofReduceBool`, `_root_.«sorryAx»`.
    "sorry": "sorry sorryAx mkSorry admit",
    "compiled_evaluation": "native_decide bv_decide bv_check nativeDecide decideNative ofReduceBool ofReduceNat "
    "reduceBool reduceNat trustCompiler",
    "unsafe_code": "unsafe unsafeCast unsafeIO unsafeBaseIO unsafeEIO implemented_by extern csimp lcProof lcCast lcAny "
    "lcUnreachable evalConst addDeclWithoutChecking",
    "elaboration_code": "run_tac run_cmd run_elab run_meta by_elab include_str initialize builtin_initialize "
    "compileDecl liftCommandElabM elabCommand addDecl polyrith dbgTrace dbg_trace loadDynlib plausible slim_check",
}
_QUALIFIED = {
    # Refused as a component of a name with several; alone, such a word is a variable or only a type.
    "elaboration_code": "IO EIO BaseIO System FS EStateM MetaM CoreM TermElabM TacticM CommandElabM",
}
_WORDS = {
    # Refused as whole identifiers only: these are keywords, and harmless as fields (`h.end`) and in «».
    "declaration": "axiom theorem lemma example def abbrev opaque inductive structure class deriving mutual "
    "irreducible_def alias proof_wanted partial noncomputable private protected axioms",
    "syntax_extension": "macro macro_rules syntax notation notation3 infix infixl infixr postfix elab "
    "elab_rules declare_syntax_cat binder_predicate simproc simproc_decl register_option unif_hint register_simp_attr "
    "declare_aesop_rule_sets",
    "attribute": "attribute instance add_decl_doc add_aesop_rules seal unseal grind_pattern",
    "scope": "namespace section end local export universe variable include omit",
    "command": "import assert_not_exists assert_no_sorry suppress_compilation",
}
_HASHED = (
    "eval exit print check check_failure reduce synth guard guard_msgs guard_expr help find where min_imports time "
    "count_heartbeats simp norm_num ring conv lint import explode html widget show_kind "
    "search leansearch loogle moogle statesearch leanfinder"
)
_PARTS = {word: reason for reason, words in _COMPONENTS.items() for word in words.split()}
_OF_NAMES = _PARTS | {word: reason for reason, words in _QUALIFIED.items() for word in words.split()}
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
"""Options that a proof may set (`set_option … in`) with their largest values; 0 would mean no limit and is refused."""


def screen(proof: str) -> str:
    """The tactic block with its comments replaced by blanks, ready for Lean. Raises Failed."""
    if len(proof) > MAX_LENGTH:
        raise Failed("too_long", f"{len(proof)} characters, at most {MAX_LENGTH}")
    characters(proof)
    source = read(proof)
    if not source.tokens:
        raise Failed("empty", "no tactic")
    _brackets(source)
    _tokens(source)
    return source.blank.rstrip()


def characters(text: str) -> None:
    """Refuse control, format and private-use characters and surrogates, which are invisible. Raises Failed."""
    for place, sign in enumerate(text):
        if sign not in "\n\t" and not " " <= sign <= "~" and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co"):
            raise Failed("bad_character", f"U+{ord(sign):04X} at {place}")


def _brackets(source: Source) -> None:
    depth = 0
    for token in source.tokens:
        if token.text in _OPENING:
            depth += 1
            if depth > MAX_BRACKETS:
                raise Failed("too_deep", f"more than {MAX_BRACKETS} open brackets")
        elif token.text in _CLOSING:
            depth -= 1


_OPENING, _CLOSING = frozenset("([{⟨⌊⌈"), frozenset(")]}⟩⌋⌉")


def _tokens(source: Source) -> None:
    tokens = source.tokens
    for place, token in enumerate(tokens):
        following = _next(tokens, place)
        if token.kind in ("identifier", "string") and not _is_phase(tokens, place):
            _word(token)
        if token.kind == "identifier":
            if place and tokens[place - 1].end == token.start:
                _glued(token)
            if token.text == "set_option":
                _option(tokens, place)
            elif token.text == "open":
                _open(tokens, place)
            elif token.text == "scoped" and (not place or tokens[place - 1].text != "open"):
                raise Failed("scope", "scoped")
            elif token.text == "native" and place and _sets_native(tokens, place):
                raise Failed("compiled_evaluation", "native")
        if token.text == "@" and following == "[":
            raise Failed("attribute", "@[")
        if token.text == "#" and following in _HASHES and tokens[place + 1].start == token.end:
            raise Failed("command", f"#{following}"[:40])
        if token.text in ("eval", "elab_stx") and following == "%":
            raise Failed("elaboration_code", f"{token.text}%")


def _is_phase(tokens: tuple[Token, ...], place: int) -> bool:
    """Whether the token is the phase of a rule of Aesop, as in `aesop (add unsafe 50% foo, unsafe 10% bar)`."""
    if tokens[place].text != "unsafe" or not 0 < place < len(tokens) - 1:
        return False
    before, following = tokens[place - 1].text, tokens[place + 1]
    return before == "add" or (before == "," and following.kind == "number")


def _word(token: Token) -> None:
    several = len(token.parts) > 1
    for part in token.parts:
        # A name that normalises to a forbidden one is refused like it.
        plain = unicodedata.normalize("NFKC", part)
        pieces = plain.split(".")
        known = _OF_NAMES if token.kind == "identifier" and (several or len(pieces) > 1) else _PARTS
        for piece in {plain, plain.rstrip("'!?"), *pieces}:
            if piece in known:
                raise Failed(known[piece], token.text[:80])
    if token.kind == "identifier":
        whole = token.text.rstrip("!?")  # `axiom'` is an identifier
        if whole in _WHOLE:
            raise Failed(_WHOLE[whole], whole)


def _glued(token: Token) -> None:
    """Refuse a word whose beginning could belong to an operator before it (`[ZMODsorry`). Raises Failed."""
    first = token.parts[0]
    for word in (*_PARTS, "set_option"):
        if len(word) > 4 and first.endswith(word) and len(first) - len(word) <= 8 and first != word:
            raise Failed(_PARTS.get(word, "option"), f"{token.text[:60]}: put a blank before {word}")


def _open(tokens: tuple[Token, ...], place: int) -> None:
    """Check `open A B in`, perhaps with `scoped`; whatever renames or hides is refused. Raises Failed."""
    at = place + (2 if _next(tokens, place) == "scoped" else 1)
    first = at
    while at < len(tokens) and tokens[at].kind == "identifier" and tokens[at].text != "in":
        if tokens[at].text in ("renaming", "hiding"):
            break
        at += 1
    if at == first or at >= len(tokens) or tokens[at].text != "in":
        raise Failed("scope", "open without `in`, or with more than names of namespaces")


def _option(tokens: tuple[Token, ...], place: int) -> None:
    """Check `set_option NAME VALUE in`: NAME must be in OPTIONS and VALUE within its limit. Raises Failed."""
    name = _next(tokens, place)
    value, then = _next(tokens, place + 1), _next(tokens, place + 2)
    if name not in OPTIONS:
        raise Failed("option", f"set_option {name}"[:80])
    most = OPTIONS[name]
    if then != "in":
        raise Failed("option", f"set_option {name} without `in`")
    if most is None:
        if value not in ("true", "false"):
            raise Failed("option", f"set_option {name} {value}"[:80])
    elif not re.fullmatch(r"[0-9_]{1,12}", value) or not 0 < int(value.replace("_", "") or 0) <= most:
        raise Failed("option", f"set_option {name} {value}: from 1 to {most}"[:80])


def _sets_native(tokens: tuple[Token, ...], place: int) -> bool:
    """Whether `native` stands as in `+native`, `(native := …` or `{ native := …`, and is no variable."""
    before = tokens[place - 1].text
    return before == "+" or (before in "({," and _next(tokens, place) == ":" and _next(tokens, place + 1) == "=")


def _next(tokens: tuple[Token, ...], place: int) -> str:
    return tokens[place + 1].text if place + 1 < len(tokens) else ""
