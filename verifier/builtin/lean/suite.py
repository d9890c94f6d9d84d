"""Attacks on the Lean verifier and honest proofs, as data: the model's answer and the expected verdict.

The tests run them against recorded findings or a Lean at hand, `sieve doctor` against the Lean that is configured.
`ATTACKS` take the same path as a completion; those of them that are tactic blocks are also given to Lean as they stand,
like the blocks of `PAST_SCREENING`: the checker alone must refuse them. `KERNEL_ALONE` are given to it with its look at
the syntax turned off: the second type check alone must refuse them. All statements need nothing but Lean's core library.
"""

# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FALSE = {"header": "", "name": "falsehood", "statement": "theorem falsehood : (1 : Nat) = 2 := by\n"}
TRUE = {"header": "", "name": "truth", "statement": "theorem truth (a b : Nat) : a + b = b + a := by\n"}
AXIOM = {
    "header": "axiom given : False\n",
    "name": "falsehood",
    "statement": "theorem falsehood : (1 : Nat) = 2 := by\n",
}


QUOTES = FALSE | {"header": "local infixl:70 \" '' \" => fun (f : Nat → Nat) (n : Nat) => f n\n"}
TOKEN = FALSE | {"header": 'local notation "[ZMOD" n "]" => (n : Nat)\n'}
UNCHECKED_RECORD = FALSE | {"statement": "set_option debug.skipKernelTC true in\n" + FALSE["statement"]}
UNCHECKED = "set_option debug.skipKernelTC true in decide +kernel"


@dataclass(frozen=True)
class Case:
    """One attack; `reasons`: the expected reason codes; `asks_lean`: whether it reaches Lean."""

    id: str
    answer: str
    reasons: frozenset[str]
    asks_lean: bool = False
    record: dict[str, Any] = field(default_factory=lambda: FALSE)


def screened(id: str, answer: str, *reasons: str, record: dict[str, Any] = FALSE) -> Case:
    return Case(id, answer, frozenset(reasons), False, record)


def asked(id: str, answer: str, *reasons: str, record: dict[str, Any] = FALSE) -> Case:
    return Case(id, answer, frozenset(reasons), True, record)


ATTACKS = [
    # holes
    screened("sorry", "  sorry", "sorry"),
    screened("sorry in a term", "  exact (sorry : (1 : Nat) = 2)", "sorry"),
    screened("admit", "  admit", "sorry"),
    asked("stop", "  stop\n  rfl", "forbidden_token"),
    screened("a search on the network", '  #leansearch "a proof."', "command"),
    asked("a text that is evaluated", '  have h := "x"\n  trace h\n  rfl', "forbidden_token", "not_lean"),
    screened("sorry by its axiom", "  exact sorryAx _ true", "sorry"),
    screened("sorry by its axiom from the root", "  exact _root_.sorryAx _", "sorry"),
    screened("sorry in guillemets", "  exact «sorryAx» _ true", "sorry"),
    screened("sorry after a nested comment", "  /- /- -/ -/ sorry /- -/", "sorry"),
    screened("sorry inside an interpolated string", '  have : String := s!"{(sorry : Nat)}"\n  rfl', "sorry"),
    screened("sorry in full-width letters", "  ｓｏｒｒｙ", "bad_character"),
    screened("sorry with a zero-width space", "  sor\u200bry", "bad_character"),
    screened("sorry behind a right-to-left override", "  \u202eyrros", "bad_character"),
    screened("sorry behind a NUL", "  rfl\x00 sorry", "bad_character"),
    screened("sorry behind a attached comment", "  exact f <--sorry\n  rfl", "odd_comment", "sorry"),
    # the compiler as an oracle
    screened("native_decide", "  native_decide", "compiled_evaluation"),
    screened("decide +native", "  decide +native", "compiled_evaluation"),
    screened("decide with a native config", "  decide (config := { native := true })", "compiled_evaluation"),
    screened("bv_decide", "  bv_decide", "compiled_evaluation"),
    screened("ofReduceBool", "  exact absurd (Lean.ofReduceBool true false rfl) (by simp)", "compiled_evaluation"),
    screened("trustCompiler", "  exact Lean.trustCompiler.elim", "compiled_evaluation"),
    # declarations and commands of one's own
    screened("an axiom after the proof", "  exact bad\n\naxiom bad : (1 : Nat) = 2", "declaration"),
    screened("a second theorem of the name", "  rfl\n\ntheorem falsehood : True := trivial", "declaration", "statement_changed"),
    screened("an instance", "  decide\n\ninstance : Decidable ((1 : Nat) = 2) := isTrue cheat", "attribute"),
    screened("partial", "  let rec f : (1 : Nat) = 2 := f\n  partial", "declaration"),
    screened("unsafe cast", "  exact unsafeCast (rfl : (1 : Nat) = 1)", "unsafe_code"),
    screened("unsafe term", "  exact (unsafe lcProof)", "unsafe_code"),
    screened("implemented_by", "  rfl\n\nattribute [implemented_by g] f", "unsafe_code", "attribute"),
    screened("extern", '  rfl\n\n@[extern "x"] opaque f : Nat', "attribute", "unsafe_code", "declaration"),
    screened("opaque", "  rfl\n\nopaque f : False", "declaration"),
    screened("exit", "  rfl\n#exit", "command"),
    screened("eval", '  rfl\n#eval IO.println "hi"', "command", "elaboration_code"),
    screened("eval on the same line", '  rfl  #eval 1', "command"),
    screened("import", "  rfl\nimport Lean.Elab", "command"),
    # syntax, scopes and attributes
    screened("a local notation", "  rfl\nlocal notation \"2\" => 1", "scope", "syntax_extension"),
    screened("a macro for the checker's command", '  rfl\nmacro "x" : command => `(#eval 1)', "syntax_extension"),
    screened("macro_rules over a tactic", "  rfl\nmacro_rules | `(tactic| rfl) => `(tactic| trivial)", "syntax_extension"),
    screened("elab", '  rfl\nelab "cheat" : tactic => pure ()', "syntax_extension"),
    screened("a local simp attribute", "  attribute [local simp] bad in simp", "attribute"),
    screened("a namespace that shadows", "  rfl\nend\nnamespace falsehood", "scope"),
    asked("open in", "  open Lean Elab in exact rfl", "not_proved"),
    asked("open in for a program", "  open Lean in have := findSysroot\n  decide", "elaboration_code"),
    screened("open that renames", "  open Lean renaming findSysroot → f in exact rfl", "scope"),
    screened("a section", "  rfl\nsection\nvariable (h : False)", "scope"),
    # options
    screened("skipKernelTC", "  set_option debug.skipKernelTC true in rfl", "option"),
    screened("byAsSorry", "  set_option debug.byAsSorry true in rfl", "option"),
    screened("an option in guillemets", "  set_option «debug».skipKernelTC true in rfl", "option"),
    screened("heartbeats without limit", "  set_option maxHeartbeats 0 in rfl", "option"),
    screened("heartbeats beyond the limit", "  set_option maxHeartbeats 99999999999 in rfl", "option"),
    screened("an option for the rest of the file", "  set_option maxHeartbeats 400000\n  rfl", "option"),
    # two readings
    screened("a number glued to an option", f"  iterate 1{UNCHECKED}", "odd_number"),
    screened("a hexadecimal number glued to an option", f"  iterate 0x1{UNCHECKED}", "odd_number"),
    screened("a binary number glued to an option", f"  iterate 0b1{UNCHECKED}", "odd_number"),
    screened("a field glued to an option", f"  exact (h.1{UNCHECKED})", "odd_number"),
    screened("a number glued to sorry", "  iterate 1sorry", "odd_number"),
    screened("a number with a separator glued to sorry", "  iterate 1_0sorry", "odd_number"),
    screened("a number glued to run_tac", "  iterate 1run_tac Lean.Elab.Tactic.done", "odd_number"),
    screened("a number glued to guillemets", "  exact 1«sorryAx»", "odd_number"),
    screened("an operator that is not a character", f"""  first | exact absurd (id ''"' " = 0) id | {UNCHECKED} --' " """,
             "odd_quote", record=QUOTES),
    screened("an operator before a string", f"""  first | exact f ''"' " | {UNCHECKED} --' " """, "odd_quote", record=QUOTES),
    screened("a character glued to an operator", f"""  first | exact f⁻¹'"' " | {UNCHECKED} --' " """, "odd_quote"),
    screened("a string inside an interpolated one", f"""  first | exact s!"{{"}}" | {UNCHECKED} --" """, "odd_string", "odd_quote"),
    screened("a comment inside an interpolated string", '  exact s!"{1 /- }" sorry -/ }"', "odd_string"),
    screened("an escape that Lean does not know", '  exact "\\ " sorry "', "odd_string"),
    screened("an operator glued to sorry", "  exact [ZMODsorry]", "sorry", record=TOKEN),
    screened("an operator glued to an option", f"  exact [ZMOD{UNCHECKED}]", "option", record=TOKEN),
    screened("a comment that is whole for some", "  rfl /--/ sorry /- -/", "odd_comment"),
    screened("a letter of newer versions", "  exact ésorry", "bad_character"),
    screened("a no-break space", "  exact\u00a0sorry", "bad_character", "sorry"),
    # code run while elaborating
    asked("findSysroot in a configuration", '  simp (config := { maxSteps := match Lean.findSysroot "prog" () with '
             "| .ok .. => 1 | .error .. => 2 })", "elaboration_code"),
    asked("a configuration that matches", "  simp (config := { maxSteps := match 1 with | 0 => 1 | _ => 2 })", "elaboration_code"),
    asked("a program by a field", '  simp (config := { maxSteps := ("x" : Lean.Name).isAnonymous.toNat })', "elaboration_code"),
    screened("a library loaded", '  have := Lean.loadDynlib "x"\n  decide', "elaboration_code"),
    asked("a program by its type alone", '  have := Lean.findOLean\n  decide', "elaboration_code"),
    asked("a program under a name of its own", "  have := Lean.Elab.Tactic.done\n  decide", "elaboration_code"),
    asked("a timed program", '  have := timeit "x"\n  exact Lean.profileitIO', "elaboration_code"),
    screened("run_tac", "  run_tac Lean.Elab.Tactic.done", "elaboration_code"),
    screened("by_elab", "  exact by_elab return Lean.mkConst `True", "elaboration_code"),
    screened("run_cmd", "  rfl\nrun_cmd Lean.logInfo \"x\"", "elaboration_code"),
    screened("a file read while elaborating", '  have := include_str "/etc/passwd"\n  rfl', "elaboration_code"),
    screened("a file asked for in a tactic's configuration", "  simp (config := { maxSteps := match System.FilePath."
             "pathExists \"/etc/passwd\" () with | .ok true _ => 1 | _ => 2 })", "elaboration_code"),
    screened("IO in a tactic's configuration", "  simp (config := unsafeIO (IO.println 1))", "unsafe_code", "elaboration_code"),
    screened("the network", "  polyrith", "elaboration_code"),
    screened("initialize", "  rfl\ninitialize IO.println \"x\"", "elaboration_code"),
    # comments, fences and the statement
    screened("a comment that is never closed", "  rfl /- the rest is swallowed", "unterminated_comment"),
    screened("a string that is never closed", '  exact "', "unterminated_string"),
    screened("a second fence", "  rfl\n```\nor rather\n```lean4\nsorry\n```", "second_fence"),
    screened("two fenced answers", "```lean4\nrfl\n```\n```lean4\nomega\n```", "second_fence"),
    screened("another statement", "```lean4\ntheorem falsehood : (1 : Nat) = 1 := by\n  rfl\n```", "statement_changed"),
    screened("an extra hypothesis", "theorem falsehood (h : False) : (1 : Nat) = 2 := by\n  exact h.elim", "statement_changed"),
    screened("another name", "```lean4\ntheorem other : (1 : Nat) = 2 := by\n  rfl\n```", "statement_changed"),
    screened("a proof that is a term", "```lean4\ntheorem falsehood : (1 : Nat) = 2 := cheat\n```", "no_proof"),
    screened("nothing", "   \n", "no_proof"),
    screened("only a comment", "  -- trivial", "empty"),
    screened("too long", "  simp\n" * 60_000, "answer_too_long"),
    screened("too long a block", "  simp\n" * 12_000, "too_long"),
    screened("comments nested for ever", "/-" * 1000 + "-/" * 1000 + " rfl", "too_deep"),
    # what only Lean can tell
    asked("a comment closed twice", "  rfl -/ /-- -/", "not_lean", "not_proved"),
    asked("prose", "The claim follows from arithmetic.", "not_lean"),
    asked("rfl", "  rfl", "not_proved"),
    asked("decide", "  decide", "not_proved"),
    asked("omega", "  omega", "not_proved"),
    asked("simp with itself", "  exact falsehood", "not_proved"),
    asked("a recursion without end", "  exact f 0\nwhere f (n : Nat) : (1 : Nat) = 2 := f (n + 1)", "not_proved", "not_lean"),
    asked("a goal left open", "  have h : (2 : Nat) = 2 := rfl", "not_proved"),
    asked("an error beside a proof", "  exact absurd rfl (by decide : ¬ (1 : Nat) = 1)", "not_proved"),
    screened("a finding forged in an error", '  fail "{\\"sieve\\":\\"00\\",\\"status\\":\\"ok\\",\\"detail\\":\\"\\",\\"axioms\\":[]}"', "odd_string"),
    screened("a finding forged in a trace", '  trace "{\\"sieve\\":\\"00\\",\\"status\\":\\"ok\\"}"\n  rfl', "odd_string"),
    screened("out of the string literal", '  rfl" "walk" "1"\n#eval 1 --', "odd_number", "command", "unterminated_string"),
    asked("backslashes against the string literal", '  exact "\\\\" ++ "\\"" ++ rfl', "not_proved"),
    asked("an axiom of the header", "  exact given.elim", "axioms", record=AXIOM),
    asked("heartbeats", "  exact Nat.rec (motive := fun _ => (1 : Nat) = 2) (by decide : (Nat.repeat (· + 1) 99999 0) = 1) "
          "(fun _ h => h) 0", "not_proved", "heartbeats"),
    screened("brackets too deep", "  exact " + "(" * 3000 + "rfl" + ")" * 3000, "too_deep"),
    asked("a universe trick", "  exact (fun (α : Type) (h : α = α) => h) Nat rfl", "not_proved"),
]  # fmt: skip

PAST_SCREENING = {
    "sorry": " sorry",
    "sorryAx": " exact sorryAx _ true",
    "native_decide": " native_decide",
    "native": " decide +native",
    "an axiom": " exact bad\n\naxiom bad : (1 : Nat) = 2",
    "a command after the proof": " decide\n\n#eval 1",
    "a second theorem": " rfl\n\ntheorem other : True := trivial",
    "skipKernelTC": " set_option debug.skipKernelTC true in exact (rfl : (0 : Nat) = 0)",
    "byAsSorry": " set_option debug.byAsSorry true in exact (by rfl)",
    "run_tac": " run_tac Lean.Elab.Tactic.done",
    "by_elab": " exact by_elab return Lean.mkConst `True",
    "code that admits": " run_tac do Lean.Elab.admitGoal (← Lean.Elab.Tactic.getMainGoal)",
    "open and run_tac": " open Lean Elab Tactic in run_tac do admitGoal (← getMainGoal)",
    "a file": ' have := include_str "/etc/passwd"\n decide',
    "a file asked for in a configuration": ' simp (config := { maxSteps := match System.FilePath.pathExists "/etc" () '
    "with | .ok true _ => 1 | _ => 2 })",
    "a number and an option": f" iterate 1{UNCHECKED}",
    "a hexadecimal number and an option": f" iterate 0x1{UNCHECKED}",
    "an option of printing": " set_option pp.all true in decide",
    "an unlimited option": " set_option maxHeartbeats 0 in decide",
    "native in a configuration": " decide (config := { native := true })",
    "swallowing": " rfl /- ",
    "a false axiom by let rec": " let rec f : (1 : Nat) = 2 := f\n exact f",
    "a partial helper": " exact f 0\nwhere partial f (n : Nat) : (1 : Nat) = 2 := f n",
    "an unsafe helper": " exact f 0\nwhere unsafe f (n : Nat) : (1 : Nat) = 2 := f n",
}
"""Tactic blocks as they stand after `by`; none may come out `ok` with allowed axioms for FALSE."""


_ADD = "\n  set_option debug.skipKernelTC true in run_tac Lean.addDecl ({})\n"
_FALSE_TYPE = "Lean.mkConst `False"

KERNEL_ALONE = {
    "skipKernelTC": (FALSE, f" {UNCHECKED}"),
    "a number glued to skipKernelTC": (FALSE, f" iterate 1{UNCHECKED}"),
    "an operator before skipKernelTC": (QUOTES, f""" first | exact absurd (id ''"' " = 0) id | {UNCHECKED} --' " """),
    "sorry": (FALSE, " sorry"),
    "a number glued to sorry": (FALSE, " iterate 1sorry"),
    "stop": (FALSE, "\n  stop\n  rfl"),
    "sorryAx": (FALSE, " exact sorryAx _ true"),
    "native_decide": (FALSE | {"statement": "theorem falsehood : (10 : Nat) < 11 := by\n"}, " native_decide"),
    "byAsSorry": (FALSE, " set_option debug.byAsSorry true in exact (by rfl)"),
    "admitted by code": (
        FALSE,
        "\n  run_tac do\n    for goal in (← get).goals do goal.admit\n    modify fun state => { state with goals := [] }",
    ),
    "an axiom added by code": (
        FALSE,
        _ADD.replace(
            "{}", f".axiomDecl {{ name := `oops, levelParams := [], type := {_FALSE_TYPE}, isUnsafe := false }}"
        )
        + "  exact (oops : False).elim",
    ),
    "a theorem added by code": (
        FALSE,
        _ADD.replace(
            "{}",
            f".thmDecl {{ name := `oops, levelParams := [], type := {_FALSE_TYPE}, value := Lean.mkConst `True.intro }}",
        )
        + "  exact (oops : False).elim",
    ),
    "a definition that refers to itself": (
        FALSE,
        _ADD.replace(
            "{}",
            f".defnDecl {{ name := `oops, levelParams := [], type := {_FALSE_TYPE}, value := Lean.mkConst `oops, "
            "hints := .abbrev, safety := .safe }",
        )
        + "  exact (oops : False).elim",
    ),
    "an unsafe definition": (
        UNCHECKED_RECORD,
        _ADD.replace(
            "{}",
            f".defnDecl {{ name := `oops, levelParams := [], type := {_FALSE_TYPE}, value := Lean.mkConst `True.intro, "
            "hints := .abbrev, safety := .unsafe }",
        )
        + "  exact (oops : False).elim",
    ),
    "a record that is elaborated unchecked": (UNCHECKED_RECORD, " decide +kernel"),
    "an option set by code": (
        FALSE,
        " run_tac do\n  Lean.Elab.Tactic.evalTactic (← `(tactic| set_option debug.skipKernelTC true in decide +kernel))",
    ),
    "messages thrown away by code": (
        FALSE,
        "\n  · decide\n  run_tac modifyThe Lean.Core.State fun state => { state with messages := {} }",
    ),
    "compiled evaluation by the kernel": (
        FALSE | {"statement": "theorem falsehood : True := by\n"},
        "\n  have h : Lean.reduceBool Lean.version.isRelease = Lean.reduceBool Lean.version.isRelease := rfl\n"
        "  exact trivial",
    ),
}
"""Records and tactic blocks that run with the checker's look at the syntax turned off; none may come out `ok` with
allowed axioms."""

UNSCREENED = {id: (FALSE, proof) for id, proof in PAST_SCREENING.items()} | {
    case.id: (case.record, f"\n{case.answer}")
    for case in ATTACKS
    # Blocks so long or so deep that Lean takes minutes over them, and what a Lean string cannot hold, are for screening.
    if len(case.answer) < 4000 and not any(part in case.answer for part in ("```", "theorem", "\x00"))
}
"""Every attack that is a tactic block, as it is given to the checker without screening."""

HONEST = [
    ("omega", TRUE, "  omega"),
    ("a lemma", TRUE, "  exact Nat.add_comm a b"),
    ("comments everywhere", TRUE, "  -- sorry, this is\n  /- not /- an -/ admission -/\n  rw [Nat.add_comm] -- done"),
    ("the whole theorem, fenced", TRUE, "Here it is:\n```lean4\nimport Mathlib\n\n/-- true -/\ntheorem truth (a b : Nat) :\n    a + b = b + a := by\n  induction a with\n  | zero => simp\n  | succ n ih => omega\n```\nDone."),
    ("the whole theorem, bare", TRUE, "theorem truth (a b : Nat) : a + b = b + a := by omega"),
    ("up to a closing fence", TRUE, "  have h : b + a = a + b := Nat.add_comm b a\n  exact h.symm\n```\n"),
    ("more heartbeats, within the limit", TRUE, "  set_option maxHeartbeats 400000 in\n  omega"),
    ("calc", TRUE, "  calc a + b = b + a := Nat.add_comm a b\n    _ = b + a := rfl"),
    ("cases and structure", {"header": "", "name": "swap", "statement": "theorem swap (p q : Prop) (h : p ∧ q) : q ∧ p := by\n"},
     "  obtain ⟨hp, hq⟩ := h\n  constructor\n  · exact hq\n  · exact hp"),
    ("classical logic", {"header": "", "name": "lem", "statement": "theorem lem (p : Prop) : p ∨ ¬p := by\n"},
     "  exact Classical.em p"),
    ("a helper below", {"header": "", "name": "zero_add'", "statement": "theorem zero_add' (n : Nat) : 0 + n = n := by\n"},
     "  exact go n\nwhere\n  go : (m : Nat) → 0 + m = m\n    | 0 => rfl\n    | m + 1 => congrArg (· + 1) (go m)"),
    ("a header with opens and a namespace",
     {"header": "open Nat\nnamespace Deep\nvariable (k : Nat)\n", "name": "Deep.double", "statement": "theorem double : k + k = 2 * k := by\n"},
     "  omega"),
    ("strings and characters", {"header": "", "name": "quote", "statement": "theorem quote : \"a\\\"b\".length = 3 ∧ 'c' ≠ 'd' := by\n"},
     "  constructor\n  · rfl\n  · decide"),
    ("an attribute of the record", {"header": "", "name": "zero", "statement": "@[simp] theorem zero (n : Nat) : n + 0 = n := by\n"},
     "  rfl"),
    ("an open of the record", {"header": "", "name": "one", "statement": "open Nat in theorem one (n : Nat) : n < succ n := by\n"},
     "  exact lt_succ_self n"),
    ("an option of the record", TRUE | {"statement": "set_option maxRecDepth 2000 in\nset_option pp.all true in\n/-- sorry -/\n" + TRUE["statement"]},
     "```lean\ntheorem truth (a b : Nat) : a + b = b + a := by\n  omega\n```"),
    ("CRLF and tabs in the record", TRUE | {"statement": "theorem truth\r\n\t(a b : Nat) :\r\n\ta + b = b + a := by\r\n"}, "  omega"),
    ("CRLF and tabs", TRUE, "\thave h : b + a = a + b := by\r\n\t\tomega\r\n\texact h.symm\r\n"),
    ("variables with the names of programs", {"header": "", "name": "names", "statement": "theorem names : ∀ a b c d e : Nat, a + b = b + a := by\n"},
     "  intro IO native stop constant «prefix»\n  have System : native = native := rfl\n  exact Nat.add_comm IO native"),
    ("an operator at a line's start", TRUE | {"header": 'local prefix:max "#" => fun (n : Nat) => n\n'},
     "  exact Nat.add_comm\n    #a b"),
    ("a comment after an operator", TRUE, "  apply Eq.trans (Nat.add_comm a b) <;>-- the rest\n  rfl"),
    ("open in a proof", TRUE, "  open Classical in\n  open Nat in exact Nat.add_comm a b"),
    ("a depth in a proof", TRUE, "  set_option maxRecDepth 100000 in omega"),
    ("a configuration", TRUE, "  simp (config := { decide := true, maxSteps := 10 * 1000 }) [Nat.add_comm]"),
    ("occurrences", {"header": "", "name": "occurrences", "statement": "theorem occurrences (a b : Nat) : a + b + (a + b) = a + b + (b + a) := by\n"},
     "  conv in (occs := 2) a + b => rw [Nat.add_comm]"),
    ("an operator after a number", {"header": 'local notation:10000 n "!" => Nat.succ n\n', "name": "after", "statement": "theorem after : 5! = 6 := by\n"},
     "  show 5! = 6\n  rfl"),
    ("simplification procedures", {"header": "", "name": "sum", "statement": "theorem sum : (2 : Nat) + 3 = 5 := by\n"},
     "  simp only [Nat.reduceAdd]"),
    ("kernel evaluation", {"header": "", "name": "prod", "statement": "theorem prod : (12 : Nat) * 12 = 144 := by\n"}, "  decide +kernel"),
    ("recursion that terminates by a measure", {"header": "", "name": "halves", "statement": "theorem halves (n : Nat) : ∃ k, n ≤ 2 * k := by\n"},
     "  exact go n\nwhere\n  go (m : Nat) : ∃ k, m ≤ 2 * k := by\n    match m with\n    | 0 => exact ⟨0, Nat.le_refl 0⟩\n    | m + 1 =>\n"
     "      have ⟨k, h⟩ := go (m / 2)\n      exact ⟨m + 1, by omega⟩\n  termination_by m"),
    ("a proof inside the statement", {"header": "", "name": "fin", "statement": "theorem fin : (⟨0, by decide⟩ : Fin 2) = 0 := by\n"}, "  rfl"),
    ("a match inside the statement", {"header": "", "name": "cases", "statement": "theorem cases (n : Nat) : (match n with | 0 => 0 | k + 1 => k) ≤ n := by\n"},
     "  cases n with\n  | zero => exact Nat.le_refl 0\n  | succ k => exact Nat.le_succ k"),
    ("universes and a type of the header", {"header": "universe u\ninductive Tree (α : Type u) | leaf | node (l : Tree α) (a : α) (r : Tree α)\n", "name": "tree",
      "statement": "theorem tree {α : Type u} (a : α) : Tree.node .leaf a .leaf ≠ .leaf := by\n"}, "  intro h\n  cases h"),
]  # fmt: skip
