/- The trusted half of a check, run by Lean itself: `#sieve_check nonce name statement tail mode heartbeats`.

`statement` and `tail` (the model's proof) arrive as string literals, so nothing the model wrote is ever part of the
file's own command stream. They are parsed together as exactly one command that must use up the text; its kind, its
tokens, its messages, its type against a pristine elaboration of the statement, the constants it added and the axioms it
rests on are looked at here, and one line that carries the nonce says what was found. Nothing of it stays behind. -/
namespace SieveCheck
open Lean Elab Command

def refused : List String :=
  ["sorry", "admit", "stop", "native_decide", "bv_decide", "bv_check", "run_tac", "run_elab", "run_meta", "run_cmd",
   "by_elab", "eval%", "elab_stx%", "include_str", "unsafe", "partial", "implemented_by", "extern", "csimp",
   "initialize", "builtin_initialize", "macro", "macro_rules", "syntax", "notation", "elab", "elab_rules", "axiom",
   "attribute", "@[", "instance", "opaque", "#eval", "#exit", "open", "local", "scoped"]

/-- The first token of the tree that no proof needs, if there is one; a hole left by the parser counts. -/
partial def offending (stx : Syntax) : Option String :=
  match stx with
  | .missing => some "missing"
  | .atom _ val => if refused.contains val then some val else none
  | .node _ _ args => args.toList.foldl (init := none) fun found arg => if found.isSome then found else offending arg
  | _ => none

def parse (text : String) : CommandElabM (Except String Syntax) := do
  return Parser.runParserCategory (← getEnv) `command text "<proof>"

def firstError : List Message → CommandElabM (Option String)
  | [] => return none
  | message :: rest => do
    if message.severity matches .error then return some (← message.data.toString)
    firstError rest

/-- Elaborate with messages kept apart; the text of the first error, if there is one. -/
def elaborate (stx : Syntax) : CommandElabM (Option String) := do
  let before := (← get).messages
  modify fun s => { s with messages := {} }
  let thrown ← try elabCommand stx; pure none catch e => pure (some (← e.toMessageData.toString))
  let logged ← firstError (← get).messages.toList
  modify fun s => { s with messages := before }
  return thrown <|> logged

def added (env : Environment) : List (Name × ConstantInfo) := env.constants.map₂.toList

/-- What makes a new constant unacceptable beside the theorem: only checked theorems and definitions may appear. -/
def badKind : ConstantInfo → Option String
  | .axiomInfo _ => some "axiom"
  | .opaqueInfo _ => some "opaque"
  | .inductInfo _ => some "inductive"
  | .quotInfo _ => some "quot"
  | info => if info.isUnsafe then some "unsafe" else if info.isPartial then some "partial" else none

def untrusted : List Name :=
  [`sorryAx, `Lean.ofReduceBool, `Lean.ofReduceNat, `Lean.trustCompiler, `lcProof, `lcAny, `lcUnreachable]

/-- Axioms below `name`, where imported constants count as sound unless they are among `untrusted`. -/
partial def localAxioms (env : Environment) (todo : List Name) (seen : NameSet) (found : Array Name) : Array Name :=
  match todo with
  | [] => found
  | name :: rest =>
    if seen.contains name then localAxioms env rest seen found else
    let seen := seen.insert name
    if untrusted.contains name then localAxioms env rest seen (found.push name) else
    if (env.getModuleIdxFor? name).isSome then localAxioms env rest seen found else
    match env.find? name with
    | none => localAxioms env rest seen (found.push name)
    | some info =>
      let found := if info matches .axiomInfo _ then found.push name else found
      let inValue := match info with
        | .defnInfo v => v.value.getUsedConstants.toList
        | .thmInfo v => v.value.getUsedConstants.toList
        | .opaqueInfo v => v.value.getUsedConstants.toList
        | _ => []
      localAxioms env (info.type.getUsedConstants.toList ++ inValue ++ rest) seen found

def axiomsOf (name : Name) (trustLibrary : Bool) : CommandElabM (Array Name) := do
  if trustLibrary then return localAxioms (← getEnv) [name] {} #[] else collectAxioms name

/-- (status, detail, axioms). A status that is about the record rather than the proof begins with `record`. -/
def check (name : Name) (statement tail : String) (trustLibrary : Bool) :
    CommandElabM (String × String × Array Name) := do
  let bad (status detail : String) : CommandElabM (String × String × Array Name) := return (status, detail, #[])
  if (← getEnv).contains name then return ← bad "record_name_taken" name.toString
  let start ← get
  let .ok pristine ← parse (statement ++ " sorry") | return ← bad "record_statement" "does not parse"
  if let some error ← elaborate pristine then return ← bad "record_statement" error
  let some expected := (← getEnv).find? name | return ← bad "record_statement" s!"declares no {name}"
  let expectedType := expected.type
  let expectedLevels := expected.levelParams
  set start
  match ← parse (statement ++ tail) with
  | .error error => bad "syntax" error
  | .ok stx =>
    unless stx.getKind == ``Parser.Command.declaration && stx[1].getKind == ``Parser.Command.theorem
        || pristine.getKind == stx.getKind && stx.getKind == `lemma do
      return ← bad "declaration" stx.getKind.toString
    if let some token := offending stx then return ← bad "token" token
    let known := (added start.env).foldl (init := ({} : NameSet)) fun set entry => set.insert entry.1
    if let some error ← elaborate stx then return ← bad "proof" error
    let some info := (← getEnv).find? name | return ← bad "absent" name.toString
    unless info matches .thmInfo _ do return ← bad "kind" name.toString
    unless info.type == expectedType && info.levelParams == expectedLevels do return ← bad "type" name.toString
    let foreign := (added (← getEnv)).filterMap fun (other, otherInfo) =>
      if known.contains other then none else (badKind otherInfo).map fun kind => s!"{kind} {other}"
    if let some first := foreign.head? then return ← bad "constant" first
    return ("ok", "", ← axiomsOf name trustLibrary)

elab "#sieve_check " nonce:str name:str statement:str tail:str mode:str beats:str : command => do
  let start ← get
  discard <| elaborate (← `(command| set_option Elab.async false))
  discard <| elaborate (← `(command| set_option debug.skipKernelTC false))
  discard <| elaborate (← `(command| set_option maxHeartbeats $(Syntax.mkNumLit beats.getString):num))
  let (status, detail, axioms) ←
    try check name.getString.toName statement.getString tail.getString (mode.getString == "trust")
    catch e => pure ("thrown", ← e.toMessageData.toString, #[])
  set start
  logInfo <| toString <| Json.compress <| Json.mkObj [
    ("sieve", nonce.getString), ("status", status), ("detail", toString (detail.take 1500)),
    ("axioms", toJson (axioms.toList.map toString))]

end SieveCheck
