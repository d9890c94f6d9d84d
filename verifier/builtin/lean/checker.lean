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

/-- Parts of names through which a term that is evaluated while elaborating (a tactic's configuration, say) could act. -/
def refusedParts : List String :=
  ["IO", "EIO", "BaseIO", "System", "unsafeIO", "unsafeEIO", "unsafeBaseIO", "unsafeCast"]

def actsThrough : Name → Bool
  | .str parent part => refusedParts.contains part || actsThrough parent
  | .num parent _ => actsThrough parent
  | .anonymous => false

/-- The first token of the tree that no proof needs, if there is one; a hole left by the parser counts. -/
partial def offending (stx : Syntax) : Option String :=
  match stx with
  | .missing => some "missing"
  | .atom _ val => if refused.contains val then some val else none
  | .node _ _ args => args.toList.foldl (init := none) fun found arg => if found.isSome then found else offending arg
  | .ident _ _ name _ => if actsThrough name then some "a name that acts" else none

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

/-- What makes a constant unacceptable below the theorem: only checked theorems and definitions may be new. -/
def badKind : ConstantInfo → Option String
  | .opaqueInfo _ => some "opaque"
  | .inductInfo _ => some "inductive"
  | .quotInfo _ => some "quot"
  | info => if info.isUnsafe then some "unsafe" else if info.isPartial then some "partial" else none

def untrusted : List Name :=
  [`sorryAx, `Lean.ofReduceBool, `Lean.ofReduceNat, `Lean.trustCompiler, `lcProof, `lcAny, `lcUnreachable]

def onto : List Name → List Name → List Name
  | [], rest => rest
  | name :: names, rest => onto names (name :: rest)

/-- What the declarations of this file that `todo` rests on come down to: axioms, and new constants of a bad kind.
Imported constants are not entered, but count where they are among `untrusted`. -/
partial def below (before env : Environment) (todo : List Name) (seen : NameSet) (axioms : List Name)
    (bad : Option String) : List Name × Option String :=
  match todo with
  | [] => (axioms, bad)
  | name :: rest =>
    if seen.contains name then below before env rest seen axioms bad else
    let seen := seen.insert name
    if untrusted.contains name then below before env rest seen (name :: axioms) bad else
    if (env.getModuleIdxFor? name).isSome then below before env rest seen axioms bad else
    match env.find? name with
    | none => below before env rest seen (name :: axioms) bad
    | some info =>
      let axioms := if info matches .axiomInfo _ then name :: axioms else axioms
      let bad := if before.contains name then bad else bad <|> badKind info
      let inValue := match info with
        | .defnInfo v => v.value.getUsedConstants.toList
        | .thmInfo v => v.value.getUsedConstants.toList
        | .opaqueInfo v => v.value.getUsedConstants.toList
        | _ => []
      below before env (onto info.type.getUsedConstants.toList (onto inValue rest)) seen axioms bad

/-- Axioms below `name` with the library's theorems entered as well, unless it is to be trusted. -/
def axiomsOf (name : Name) (own : List Name) (trustLibrary : Bool) : CommandElabM (List Name) := do
  if trustLibrary then return own
  return onto own (← collectAxioms name).toList

def written (name : Name) : CommandElabM String := do
  return (← (MessageData.ofName name).toString)

def allWritten : List Name → CommandElabM String
  | [] => return ""
  | name :: rest => return (← written name) ++ " " ++ (← allWritten rest)

/-- (status, detail, axioms). A status that is about the record rather than the proof begins with `record`. -/
def check (name : Name) (statement tail : String) (trustLibrary : Bool) :
    CommandElabM (String × String × List Name) := do
  let bad (status detail : String) : CommandElabM (String × String × List Name) := return (status, detail, [])
  if (← getEnv).contains name then return ← bad "record_name_taken" (← written name)
  let start ← get
  let .ok pristine ← parse (statement ++ " sorry") | return ← bad "record_statement" "does not parse"
  if let some error ← elaborate pristine then return ← bad "record_statement" error
  let some expected := (← getEnv).find? name | return ← bad "record_statement" "declares nothing of that name"
  let expectedType := expected.type
  let expectedLevels := expected.levelParams
  set start
  match ← parse (statement ++ tail) with
  | .error error => bad "syntax" error
  | .ok stx =>
    unless stx.getKind == ``Parser.Command.declaration && stx[1].getKind == ``Parser.Command.theorem
        || pristine.getKind == stx.getKind && stx.getKind == `lemma do
      return ← bad "declaration" (← written stx.getKind)
    if let some token := offending stx then return ← bad "token" token
    if let some error ← elaborate stx then return ← bad "proof" error
    let some info := (← getEnv).find? name | return ← bad "absent" ""
    unless info matches .thmInfo _ do return ← bad "kind" ""
    unless info.type == expectedType && info.levelParams == expectedLevels do return ← bad "type" ""
    let (own, badly) := below start.env (← getEnv) [name] {} [] none
    if let some kind := badly then return ← bad "constant" kind
    return ("ok", "", ← axiomsOf name own trustLibrary)

/-- An option that this version of Lean does not know is passed over. -/
def setOption (text : String) : CommandElabM Unit := do
  let .ok stx ← parse ("set_option " ++ text) | return ()
  discard <| elaborate stx

/-- One information message. -/
def say (text : String) : CommandElabM Unit := do
  let file ← getFileName
  let line : Message := { fileName := file, pos := ⟨1, 0⟩, severity := .information, data := .ofFormat (.text text) }
  modify fun s => { s with messages := s.messages.add line }

elab "#sieve_check " nonce:str name:str statement:str tail:str mode:str beats:str : command => do
  let start ← get
  setOption "Elab.async false"
  setOption "debug.skipKernelTC false"
  setOption ("maxHeartbeats " ++ beats.getString)
  let (status, detail, axioms) ←
    try check name.getString.toName statement.getString tail.getString (mode.getString == "trust")
    catch e => pure ("thrown", ← e.toMessageData.toString, [])
  let axioms ← allWritten axioms
  set start
  say <| Json.compress <| Json.mkObj [
    ("sieve", nonce.getString), ("status", status), ("detail", toString (detail.take 1500)),
    ("axioms", axioms)]

end SieveCheck
