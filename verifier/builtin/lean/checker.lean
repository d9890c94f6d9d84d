/- The trusted half of a check, run by Lean itself: `#sieve_check nonce name statement tail mode heartbeats`.

`mode` is `walk` or `trust` (axioms of imported theorems), with ` kernel` behind it where the syntax of the answer is not
to be looked at, to try what the kernel refuses alone.

`statement` and `tail` (the model's proof) arrive as string literals, so nothing the model wrote is ever part of the
file's own command stream. They are parsed together as exactly one command that must use up the text.

What is believed rests on the kernel alone: every constant that the answer added is taken out of the environment that
its elaboration left, and is type-checked again into the environment as it was before, under options that neither the
record nor the answer has set. The theorem's type must be that of a pristine elaboration of the statement, and axioms
are collected from what was checked again. Whatever the elaboration of the answer did to options, extensions, messages
or caches is thrown away with its environment.

Before the answer is elaborated, its syntax tree is looked at, since elaboration runs code: options that are not on the
list, tokens and names that run programs, and configurations that compute are refused. The statement is trusted and is
not looked at. One line that carries the nonce says what was found; nothing of the check stays behind. -/
namespace SieveCheck
open Lean Elab Command

/-- Tokens of a proof that run code while it is elaborated, that no proof needs, or that declare what a proof may not. -/
def refused : List String :=
  ["sorry", "admit", "stop", "native_decide", "bv_decide", "bv_check", "run_tac", "run_elab", "run_meta", "run_cmd",
   "by_elab", "eval%", "elab_stx%", "include_str", "unsafe", "partial", "implemented_by", "extern", "csimp",
   "initialize", "builtin_initialize", "macro", "macro_rules", "syntax", "notation", "elab", "elab_rules", "axiom",
   "attribute", "@[", "opaque", "local", "renaming", "hiding", "plausible", "slim_check", "polyrith", "with_panel_widgets"]

/-- Options that a proof may set, with their largest values; 0 stands for true and false. -/
def options : List (Name × Nat) :=
  [(`maxHeartbeats, 1000000), (`synthInstance.maxHeartbeats, 1000000), (`maxRecDepth, 100000),
   (`exponentiation.threshold, 10000), (`synthInstance.maxSize, 10000), (`linter.all, 0), (`linter.unusedVariables, 0),
   (`linter.unusedTactic, 0), (`linter.style.setOption, 0), (`autoImplicit, 0), (`relaxedAutoImplicit, 0),
   (`tactic.hygienic, 0)]

/-- What the type of every program comes down to, and what acts without such a type. -/
def worlds : List Name :=
  [`IO.RealWorld, `IO, `EIO, `BaseIO, `ST, `EST, `Lean.CoreM, `Lean.MetaM, `Lean.Elab.Term.TermElabM,
   `Lean.Elab.Tactic.TacticM, `Lean.Elab.Command.CommandElabM, `dbgTrace, `dbgTraceVal, `dbgTraceIfShared, `dbgSleep,
   `dbgStackTrace, `unsafeIO, `unsafeEIO, `unsafeBaseIO, `unsafeCast]

def onto : List Name → List Name → List Name
  | [], rest => rest
  | name :: names, rest => onto names (name :: rest)

/-- Whether `e` is the type of a type former such as `fun (α : Type) => IO α`; propositions are none. -/
def formsType : Expr → Bool
  | .forallE _ _ body _ => formsType body
  | .sort .zero => false
  | .sort _ => true
  | _ => false

/-- Whether one of `names` is, or unfolds to, something in `worlds`; only definitions of types are unfolded. -/
partial def reachesWorld (env : Environment) (names : List Name) (seen : NameSet) : Bool :=
  match names with
  | [] => false
  | name :: rest =>
    if worlds.contains name then true else
    if seen.contains name then reachesWorld env rest seen else
    let inside := match env.find? name with
      | some (.defnInfo info) => if formsType info.type then info.value.getUsedConstants.toList else []
      | _ => []
    reachesWorld env (onto inside rest) (seen.insert name)

/-- Whether a constant is a program, or the type of one. A simplification procedure is one too, but only `simp` runs it. -/
def isProgram (env : Environment) (name : Name) : Bool :=
  match env.find? name with
  | none => worlds.contains name
  | some info =>
    info.isUnsafe ||
    (!(info.type.isConstOf `Lean.Meta.Simp.Simproc || info.type.isConstOf `Lean.Meta.Simp.DSimproc) &&
      reachesWorld env (name :: info.type.getUsedConstants.toList) {})

/-- Whether a node is the word for the phase of a rule of Aesop, such as `unsafe`. -/
def isPhase (kind : Name) : List Syntax → Bool
  | [.atom _ _] => (`Aesop).isPrefixOf kind
  | _ => false

/-- The tokens of a tree, in order, before `rest`. -/
partial def leaves (stx : Syntax) (rest : List Syntax) : List Syntax :=
  match stx with
  | .node _ kind args => if isPhase kind args.toList then rest else go args.toList
  | leaf => leaf :: rest
where
  go : List Syntax → List Syntax
    | [] => rest
    | arg :: args => leaves arg (go args)

def textOf : Syntax → String
  | .atom _ val => val
  | .ident _ raw _ _ => raw.toString
  | _ => "missing"

def startsBefore (size : Nat) (stx : Syntax) : Bool :=
  match stx.getPos? with
  | some place => place.byteIdx < size
  | none => false

/-- The tokens that begin before byte `size`. -/
def tokensBefore (size : Nat) : List Syntax → List String
  | [] => []
  | token :: rest =>
    if startsBefore size token then textOf token :: tokensBefore size rest else tokensBefore size rest

/-- The trees that begin at byte `size` or after it. -/
def after (size : Nat) : List Syntax → List Syntax
  | [] => []
  | stx :: rest => if startsBefore size stx then after size rest else stx :: after size rest

/-- Kinds of terms that compute nothing but numbers: what may stand in a tactic's configuration, which is evaluated. -/
def plainKinds : List Name :=
  [`null, `choice, `num, `str, `scientific, `char, `hygieneInfo, `Lean.Parser.Term.app, `Lean.Parser.Term.dotIdent,
   `Lean.Parser.Term.paren, `Lean.Parser.Term.hygienicLParen, `Lean.Parser.Term.optEllipsis,
   `Lean.Parser.Term.anonymousCtor, `Lean.Parser.Term.structInst, `Lean.Parser.Term.structInstFields,
   `Lean.Parser.Term.structInstField, `Lean.Parser.Term.structInstLVal, `Lean.Parser.Term.structInstFieldDef,
   `Lean.Parser.Term.structInstFieldAbbrev,
   `Lean.Parser.Tactic.Conv.occsWildcard, `Lean.Parser.Tactic.Conv.occsIndexed, `Aesop.Frontend.Parser.ruleSetSpec,
   `«term[_]», `«term_+_», `«term_-_», `«term_*_», `«term_^_»]

mutual

partial def isPlain : Syntax → Bool
  | .node _ kind args => plainKinds.contains kind && arePlain args.toList
  | .missing => false
  | _ => true

partial def arePlain : List Syntax → Bool
  | [] => true
  | stx :: rest => isPlain stx && arePlain rest

end

/-- Whether a node with `(`, `:=` and `)` is a part of a term or holds tactics, so that nothing evaluates it. -/
def isTermOrTactics : Name → Bool
  | .str _ "discharger" | .str _ "normStx" => true
  | kind => kind == `Lean.Parser.Term.namedArgument || kind == `Lean.Parser.Term.explicitBinder

def hasAtom (text : String) : List Syntax → Bool
  | .atom _ val :: rest => val == text || hasAtom text rest
  | _ :: rest => hasAtom text rest
  | [] => false

/-- The parts of a tree that a tactic evaluates: `(option := value)` wherever it is not an argument of a term. -/
partial def configurations (stx : Syntax) (rest : List Syntax) : List Syntax :=
  match stx with
  | .node _ kind args =>
    let inside := go args.toList
    if hasAtom "(" args.toList && hasAtom ":=" args.toList && !isTermOrTactics kind then stx :: inside else inside
  | _ => rest
where
  go : List Syntax → List Syntax
    | [] => rest
    | arg :: args => configurations arg (go args)

/-- The names between `open` and `in`. -/
def openedNames (within : Bool) : List Syntax → List Name
  | .atom _ "open" :: rest => openedNames true rest
  | .atom _ "in" :: rest => openedNames false rest
  | .ident _ _ name _ :: rest => if within then name :: openedNames within rest else openedNames within rest
  | _ :: rest => openedNames within rest
  | [] => []

def enclosing : Name → List Name
  | .str parent part => .str parent part :: enclosing parent
  | .num parent part => .num parent part :: enclosing parent
  | .anonymous => [.anonymous]

def openedBy : List OpenDecl → List Name
  | .simple name _ :: rest => name :: openedBy rest
  | _ :: rest => openedBy rest
  | [] => []

/-- The namespaces that `names` can mean below `bases`. -/
def namespaces (env : Environment) (bases names : List Name) : List Name :=
  match bases with
  | [] => []
  | base :: rest => below base names (namespaces env rest names)
where
  below (base : Name) : List Name → List Name → List Name
    | [], found => found
    | name :: names, found =>
      let whole := base ++ name
      below base names (if env.isNamespace whole then whole :: found else found)

/-- What an identifier can mean: constants, each with the fields that follow. The order of the arguments has changed
between versions of Lean. -/
def meanings (env : Environment) (opts : Options) (space : Name) (decls : List OpenDecl) (id : Name) :
    List (Name × List String) := by
  first
    | exact ResolveName.resolveGlobalName env space decls id
    | exact ResolveName.resolveGlobalName env opts space decls id

def firstProgram (env : Environment) (id : Name) (evaluated : Bool) : List (Name × List String) → Option Name
  | [] => none
  | (name, _) :: rest =>
    if (evaluated || !id.isAtomic || name != id) && isProgram env name then some name else
      firstProgram env id evaluated rest

/-- The first name among `tokens` that is a program. A name of one part is taken for a variable where that is possible:
alone it can only be the name of a type. -/
def program (env : Environment) (scope : Scope) (spaces : List Name) (evaluated : Bool) : List Syntax → Option Name
  | .ident _ _ id _ :: rest =>
    let id := id.eraseMacroScopes
    let decls := opening spaces scope.openDecls
    firstProgram env id evaluated (meanings env scope.opts scope.currNamespace decls id)
      <|> program env scope spaces evaluated rest
  | _ :: rest => program env scope spaces evaluated rest
  | [] => none
where
  opening : List Name → List OpenDecl → List OpenDecl
    | [], rest => rest
    | space :: spaces, rest => .simple space [] :: opening spaces rest

def limitOf (name : Name) : List (Name × Nat) → Option Nat
  | [] => none
  | (option, limit) :: rest => if option == name then some limit else limitOf name rest

/-- Whether a proof may give this value to an option. -/
def isWithin (limit : Nat) (value : String) : Bool :=
  if limit == 0 then value == "true" || value == "false" else
  match Syntax.decodeNatLitVal? value with
  | some number => 0 < number && number ≤ limit
  | none => false

def areLetters : List Char → Bool
  | sign :: rest => (sign.isAlpha || sign == '_' || sign == '?') && areLetters rest
  | [] => true

/-- Whether a token is that of a command or of a search on the network (`#eval`, `#loogle`); `#[` and `#` are not. -/
def isHashed (text : String) : Bool :=
  match text.toList with
  | '#' :: one :: two :: three :: four :: rest => areLetters (one :: two :: three :: four :: rest)
  | _ => false

/-- Whether `trace` is followed by a text; it evaluates any other term. -/
def isText : List Syntax → Bool
  | .atom _ text :: _ => text.startsWith "\""
  | _ => false

/-- The first token, or option, that is refused, as (status, detail). -/
def forbidden : List Syntax → Option (String × String)
  | .atom _ text :: rest =>
    if text == "set_option" then
      match rest with
      | .ident _ raw name _ :: value :: _ =>
        match limitOf name options with
        | none => some ("option", raw.toString)
        | some limit =>
          if isWithin limit (textOf value) then forbidden rest else
            some ("option", raw.toString ++ " " ++ textOf value)
      | _ => some ("option", "set_option without a name and a value")
    else if refused.contains text || isHashed text || (text == "trace" && !isText rest) then some ("token", text)
    else forbidden rest
  | .missing :: _ => some ("syntax", "incomplete")
  | _ :: rest => forbidden rest
  | [] => none

def written (name : Name) : CommandElabM String := do
  return (← (MessageData.ofName name).toString)

def allWritten : List Name → CommandElabM String
  | [] => return ""
  | name :: rest => return (← written name) ++ " " ++ (← allWritten rest)

def mentions (text : String) : List Syntax → Bool
  | token :: rest => textOf token == text || mentions text rest
  | [] => false

def offenceOf (env : Environment) (scope : Scope) (spaces : List Name) :
    List Syntax → CommandElabM (Option (String × String))
  | [] => return none
  | configuration :: rest => do
    unless arePlain configuration.getArgs.toList do return some ("program", "a configuration that computes")
    let inside := leaves configuration []
    if mentions "native" inside then return some ("token", "native")
    if let some name := program env scope spaces true inside then return some ("program", ← written name)
    offenceOf env scope spaces rest

/-- What is wrong with the answer's part of the tree, as (status, detail). -/
def offence (tree : Syntax) (size : Nat) : CommandElabM (Option (String × String)) := do
  let tokens := after size (leaves tree [])
  if let some found := forbidden tokens then return some found
  let env ← getEnv
  let scope :: _ := (← get).scopes | return some ("thrown", "no scope")
  let names := openedNames false tokens
  if names matches _ :: _ :: _ :: _ :: _ :: _ :: _ :: _ :: _ :: _ then
    return some ("token", "open, with more than eight names")
  let bases := onto (enclosing scope.currNamespace) (openedBy scope.openDecls)
  let once := namespaces env bases names
  -- `open A in open B in` can mean A.B.
  let spaces := onto once (namespaces env once names)
  if let some name := program env scope spaces false tokens then return some ("program", ← written name)
  offenceOf env scope spaces (after size (configurations tree []))

def parse (text : String) : CommandElabM (Except String Syntax) := do
  return Parser.runParserCategory (← getEnv) `command text "<proof>"

/-- The declaration inside `open … in`, `set_option … in` and the like. -/
partial def innermost (stx : Syntax) : Syntax :=
  if stx.getKind == ``Parser.Command.in then innermost stx[2] else stx

def firstError : List Message → CommandElabM (Option String)
  | [] => return none
  | message :: rest => do
    if message.severity matches .error then return some (← message.data.toString)
    firstError rest

/-- Elaborate with messages kept apart and the file's own text out of reach; the first error, if there is one. -/
def elaborate (text : String) (stx : Syntax) : CommandElabM (Option String) := do
  let before := (← get).messages
  modify fun s => { s with messages := {} }
  let thrown ← try
      withReader (fun context => { context with fileName := "<proof>", fileMap := text.toFileMap }) (elabCommand stx)
      pure none
    catch e => pure (some (← e.toMessageData.toString))
  let logged ← firstError (← get).messages.toList
  modify fun s => { s with messages := before }
  return thrown <|> logged

/-- An option that this version of Lean does not know is passed over. -/
def setOption (text : String) : CommandElabM Unit := do
  let text := "set_option " ++ text
  let .ok stx ← parse text | return ()
  discard <| elaborate text stx

def usedBy : ConstantInfo → List Name
  | .defnInfo info => onto info.type.getUsedConstants.toList info.value.getUsedConstants.toList
  | .thmInfo info => onto info.type.getUsedConstants.toList info.value.getUsedConstants.toList
  | .opaqueInfo info => onto info.type.getUsedConstants.toList info.value.getUsedConstants.toList
  | .inductInfo info => info.type.getUsedConstants.toList
  | .recInfo info => onto info.type.getUsedConstants.toList info.all
  | .ctorInfo info => info.induct :: info.type.getUsedConstants.toList
  | info => info.type.getUsedConstants.toList

def refusal (what : String) (name : Name) : Exception :=
  .error .missing (.ofFormat (.text what) ++ ": " ++ .ofName name)

def constructorsOf (source : Environment) : List Name → CoreM (List Constructor)
  | [] => return []
  | name :: rest => do
    let some info := source.constants.find? name | throw (refusal "an unknown constructor" name)
    return { name, type := info.type } :: (← constructorsOf source rest)

def typesOf (source : Environment) : List Name → CoreM (List InductiveType)
  | [] => return []
  | name :: rest => do
    let some (.inductInfo info) := source.constants.find? name | throw (refusal "not an inductive type" name)
    return { name, type := info.type, ctors := ← constructorsOf source info.ctors } :: (← typesOf source rest)

def usedByTypes : List InductiveType → List Name
  | [] => []
  | type :: rest =>
    onto (type.ctors.foldl (fun found ctor => onto ctor.type.getUsedConstants.toList found)
      type.type.getUsedConstants.toList) (usedByTypes rest)

mutual

/-- Let the kernel check the constant `name` of `source` and what it uses into the present environment; what is there
already stays as it is, and constructors and recursors are those that the kernel makes. Throws where it refuses. -/
partial def replay (source : Environment) (name : Name) (done : NameSet) : CoreM NameSet := do
  if done.contains name || (← getEnv).constants.contains name then return done
  let some info := source.constants.find? name | throw (refusal "an unknown constant" name)
  if info.isUnsafe || info.isPartial then throw (refusal "unsafe or partial" name)
  let done ← replayAll source (usedBy info) (done.insert name)
  match info with
  | .defnInfo value => addDecl (.defnDecl value)
  | .thmInfo value => addDecl (.thmDecl value)
  | .opaqueInfo value => addDecl (.opaqueDecl value)
  | .inductInfo value =>
    let types ← typesOf source value.all
    let done ← replayAll source (usedByTypes types) (value.all.foldl (·.insert ·) done)
    unless (← getEnv).constants.contains name do
      addDecl (.inductDecl value.levelParams value.numParams types false)
    return done
  | .ctorInfo _ | .recInfo _ => pure ()
  | .axiomInfo _ => throw (refusal "an axiom" name)
  | .quotInfo _ => throw (refusal "a quotient type" name)
  return done

partial def replayAll (source : Environment) (names : List Name) (done : NameSet) : CoreM NameSet := do
  match names with
  | [] => return done
  | name :: rest => replayAll source rest (← replay source name done)

end

/-- The entries of a map and `rest`. -/
partial def entries (node : PersistentHashMap.Node Name ConstantInfo) (rest : List (Name × ConstantInfo)) :
    List (Name × ConstantInfo) :=
  match node with
  | .entries inside => go inside.toList rest
  | .collision names infos _ => pairs names.toList infos.toList
where
  go : List (PersistentHashMap.Entry Name ConstantInfo (PersistentHashMap.Node Name ConstantInfo)) →
      List (Name × ConstantInfo) → List (Name × ConstantInfo)
    | [], rest => rest
    | .entry name info :: others, rest => (name, info) :: go others rest
    | .ref node :: others, rest => entries node (go others rest)
    | .null :: others, rest => go others rest
  pairs : List Name → List ConstantInfo → List (Name × ConstantInfo)
    | name :: names, info :: infos => (name, info) :: pairs names infos
    | _, _ => rest

/-- The names that `after` has and `before` lacks. -/
def added (before after : Environment) : List Name :=
  (entries after.constants.map₂.root []).foldl (init := []) fun found (name, info) =>
    if before.constants.contains name || info.isUnsafe || info.isPartial then found else name :: found

/-- Axioms, and the constants that the kernel evaluates by compiled code without one. -/
def untrusted : List Name :=
  [`sorryAx, `Lean.ofReduceBool, `Lean.ofReduceNat, `Lean.reduceBool, `Lean.reduceNat, `Lean.trustCompiler, `lcProof,
   `lcAny, `lcUnreachable]

/-- Axioms below `todo` among the constants of this file. Imported constants are not entered, but count where they are
among `untrusted`. -/
partial def below (env : Environment) (todo : List Name) (seen : NameSet) (axioms : List Name) : List Name :=
  match todo with
  | [] => axioms
  | name :: rest =>
    if seen.contains name then below env rest seen axioms else
    let seen := seen.insert name
    if untrusted.contains name then below env rest seen (name :: axioms) else
    if (env.getModuleIdxFor? name).isSome then below env rest seen axioms else
    match env.constants.find? name with
    | none => below env rest seen (name :: axioms)
    | some info =>
      below env (onto (usedBy info) rest) seen (if info matches .axiomInfo _ then name :: axioms else axioms)

def withoutOptions : List Scope → List Scope
  | scope :: rest => { scope with opts := {} } :: rest
  | [] => []

/-- (status, detail, axioms). A status that is about the record rather than the proof begins with `record`. -/
def check (name : Name) (statement tail : String) (trustLibrary kernelAlone : Bool) (beats : Nat) :
    CommandElabM (String × String × List Name) := do
  let bad (status detail : String) : CommandElabM (String × String × List Name) := return (status, detail, [])
  if (← getEnv).contains name then return ← bad "record_name_taken" (← written name)
  let start ← get
  let plain := statement ++ " sorry"
  let .ok pristine ← parse plain | return ← bad "record_statement" "does not parse"
  if let some error ← elaborate plain pristine then return ← bad "record_statement" error
  let pristineEnv ← getEnv
  let some expected := pristineEnv.find? name | return ← bad "record_statement" "declares nothing of that name"
  unless expected matches .thmInfo _ do return ← bad "record_statement" "is not a theorem"
  set start
  let size := statement.utf8ByteSize
  match ← parse (statement ++ tail) with
  | .error error => bad "syntax" error
  | .ok tree =>
    unless tokensBefore size (leaves tree []) == tokensBefore size (leaves pristine []) do return ← bad "syntax" "the statement reads differently"
    let declared := innermost tree
    unless declared.getKind == (innermost pristine).getKind && declared[1].getKind == (innermost pristine)[1].getKind do
      return ← bad "declaration" (← written declared.getKind)
    unless kernelAlone do
      if let some (status, detail) ← offence tree size then return ← bad status detail
    if let some error ← elaborate (statement ++ tail) tree then return ← bad "proof" error
    let later ← getEnv
    let some info := later.find? name | return ← bad "absent" ""
    unless info matches .thmInfo _ do return ← bad "kind" ""
    unless info.type == expected.type && info.levelParams == expected.levelParams do return ← bad "type" ""
    -- From here on only the environment before the answer, the kernel, and options of our own count.
    set start
    modify fun s => { s with scopes := withoutOptions s.scopes }
    setOption ("maxHeartbeats " ++ toString (max beats 1000000))
    let opts := match (← get).scopes with
      | scope :: _ => scope.opts
      | [] => {}
    let again : CoreM Unit := do
      discard <| replayAll pristineEnv expected.type.getUsedConstants.toList {}
      discard <| replayAll later (name :: added start.env later) {}
    let context : Core.Context :=
      { fileName := "<proof>", fileMap := "".toFileMap, options := opts, initHeartbeats := ← IO.getNumHeartbeats }
    let env ← try
        let (_, state) ← again.toIO context { env := start.env }
        pure state.env
      catch e => return ← bad "kernel" (← e.toMessageData.toString)
    setEnv env
    let some (.thmInfo proved) := env.constants.find? name | return ← bad "kernel" "the theorem is missing"
    unless proved.type == expected.type && proved.levelParams == expected.levelParams do return ← bad "type" "replayed"
    let own := below env [name] {} []
    if trustLibrary then return ("ok", "", own)
    return ("ok", "", onto own (← collectAxioms name).toList)

/-- One information message. -/
def say (text : String) : CommandElabM Unit := do
  let file ← getFileName
  let line : Message := { fileName := file, pos := ⟨1, 0⟩, severity := .information, data := .ofFormat (.text text) }
  modify fun s => { s with messages := s.messages.add line }

elab "#sieve_check " nonce:str name:str statement:str tail:str mode:str beats:num : command => do
  let start ← get
  setOption "Elab.async false"
  setOption "debug.skipKernelTC false"
  setOption "warningAsError false"
  setOption ("maxHeartbeats " ++ toString beats.getNat)
  let mode := mode.getString
  let (status, detail, axioms) ←
    try
      check name.getString.toName statement.getString tail.getString (mode == "trust" || mode == "trust kernel")
        (mode == "walk kernel" || mode == "trust kernel") beats.getNat
    catch e => pure ("thrown", ← e.toMessageData.toString, [])
  let axioms ← allWritten axioms
  set start
  say <| Json.compress <| Json.mkObj [
    ("sieve", nonce.getString), ("status", status), ("detail", toString (detail.take 1500)),
    ("axioms", axioms)]

end SieveCheck
