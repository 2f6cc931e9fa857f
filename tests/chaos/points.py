"""The moments at which a process may die: found in the code, named after it.

A *site* is a place that makes something durable or visible: a transaction, a file sync, a rename,
a reply, a message on a stream, a request to another process. Each has two *points*, `:before` and
`:after`. Names have no line numbers (`module:qualname:what[:n]:before`), so that an edit elsewhere
in a file renames nothing. One transformer both lists the sites and weaves the points into the
code, so that the list and the running process cannot differ.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

PASS: Final = "__chaos_pass__"
REPLY: Final = "__chaos_reply__"
TRANSACTION: Final = "__chaos_transaction__"
"""Builtins that woven code calls; `tests.chaos.shim` defines them."""

SHARED: Final = ("protos/content.py",)
TREES: Final = {
    "coordinator": ("coordinator", *SHARED),
    "agent": ("node_agent", *SHARED),
}
JOURNAL: Final = "coordinator.rounds.events"

NOT_SERVING: Final = {
    "coordinator": {
        "coordinator.gateway.certificate:": "only `feddp coordinator gateway`",
        "coordinator.backups.backup:": "only `feddp coordinator backup`",
        "coordinator.backups.check:": "only `feddp coordinator backup --verify`",
        "coordinator.backups.extract:": "only `feddp coordinator restore`",
        "coordinator.backups.folder:": "only `feddp coordinator backup --out-dir`",
        "coordinator.quarantine:Quarantine._shut_out_lost:": "only after a restore: test_restore",
        "coordinator.restoring.restore:": "only `feddp coordinator restore`",
        "coordinator.restoring.database:": "only `feddp coordinator restore`",
        "coordinator.restoring.marker:": "only `feddp coordinator restore`",
        "coordinator.rounds.events:CoordinatorRestored:": "only `feddp coordinator restore`",
        "coordinator.rpc.witness:WitnessService.HandIn:": "only after a restore: test_restored_*",
        "coordinator.replicas.keys:": "only `feddp coordinator copy-keys`",
        "coordinator.replicas.shared_blobs:": "only with a shared store: test_replicas.py",
        "coordinator.replicas.shared_work:": "only with replicas: test_transfer_port.py",
        "coordinator.backups.snapshots:": "only `feddp coordinator backup`",
        "coordinator.installation:": "only `feddp coordinator init` and `reissue`",
        "coordinator.store.migrations.": "only the first start after an upgrade changes a table",
        "coordinator.store.engines:_postgresql.": "these federations keep their state in SQLite",
    },
    "agent": {
        "node_agent.doctor.": "only `feddp agent doctor`",
        "node_agent.joining.enrol:": "only `feddp agent join`",
        "node_agent.joining.waiting_join:": "only `feddp agent join`",
        "node_agent.ledger.copies:": "only `feddp agent ledger`",
        "node_agent.folder.backup:": "only `feddp agent backup` and `restore`",
        "node_agent.folder.service:": "only `feddp agent install-service`",
        "node_agent.joining.leaving:": "only `feddp agent leave`, `move`: see test_leaving.py",
        "node_agent.state.state:State.become_copy:": "only `agent ledger import` and `restore`",
        "node_agent.state.state:State.leave:": "only `feddp agent leave` and `move`",
        "node_agent.state.state:State.arrive:": "only the first session elsewhere",
        "node_agent.session.witness:Witness._arrive:": "likewise",
        "node_agent.alerts.sinks:": "these agents have nobody to alert",
        "node_agent.failures:Failures._keep:rename": "only after 4 MiB of failures",
        "node_agent.state.state:State.settle:": "only `feddp agent ledger settle`",
        "node_agent.state.state:State.note_signed:": "only an old copy: test_restored_payers",
        "node_agent.state.state:State.deny:": "only a changed ledger: test_witness",
        "node_agent.state.state:State.note_withdrawn:": "only before a tick: test_outbox",
        "node_agent.ledger.proposals:": "only `feddp agent limit`",
        "node_agent.state.state:State.raising:": "only `feddp agent limit apply`",
        "node_agent.launchers.mailbox:": "only workers that a cluster's scheduler starts",
        "node_agent.worker:": "another process, which the agent outlives or ends",
    },
}
"""Sites that no running process of the role reaches, or only in a state that no scenario makes; by
the beginning of their names, with what does reach them."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the code; `what` is its kind."""

    name: str
    what: str

    @property
    def points(self) -> tuple[str, str]:
        """The moments just before and just after."""
        return f"{self.name}:before", f"{self.name}:after"

    def serves(self, role: str) -> bool:
        """Whether a running process of the role reaches it."""
        return not self.name.startswith(tuple(NOT_SERVING[role]))


def kind_of_call(call: ast.Call, awaited: bool) -> str:
    """What a call makes durable or visible; empty for nothing."""
    function = call.func
    if isinstance(function, ast.Name):
        return "sync" if function.id in ("sync_directory", "write_durable", "write_new") else ""
    if not isinstance(function, ast.Attribute):
        return ""
    name, receiver = function.attr, ast.unparse(function.value).lower()
    plain = len(call.args) == 1 and not call.keywords
    if name in ("fsync", "fdatasync", "sync_directory"):
        return "sync"
    if name in ("replace", "rename") and (receiver == "os" or plain):
        return "rename"
    if name == "commit" or (awaited and name.startswith("write") and "database" in receiver):
        return "transaction"
    if name in ("send", "put_nowait") and any(
        part in receiver for part in ("session", "link", "outbox")
    ):
        return "message"
    if awaited and name == "write" and receiver in ("call", "stream"):
        return "message"
    if awaited and name == "request" and "worker" in receiver:
        return "request"
    stubs = ("self._transfer", "self._federation", "self._stub")
    return "call" if name[:1].isupper() and receiver in stubs else ""


def opens_transaction(item: ast.withitem) -> bool:
    """Whether a `with` commits at its end. A savepoint does not, nor has a reader anything to."""
    call = item.context_expr
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and "reader" not in ast.unparse(call.func.value)
        and call.func.attr in ("begin", "begin_transaction", "transaction", "_transaction")
    )


@dataclass
class Weaver(ast.NodeTransformer):
    """Rewrites one module so that it passes its points; `sites` lists them."""

    module: str
    sites: list[Site] = field(default_factory=list)
    _path: list[str] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)
    _service: bool = False
    _context: str = ""

    def _site(self, what: str) -> str:
        name = f"{self.module}:{'.'.join(self._path) or 'module'}:{what}"
        self._counts[name] += 1
        if (number := self._counts[name]) > 1:
            name = f"{name}:{number}"
        self.sites.append(Site(name, what))
        return name

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        service = any("Servicer" in ast.unparse(base) for base in node.bases)
        before, self._service = self._service, service
        self._path.append(node.name)
        self.generic_visit(node)
        self._path.pop()
        self._service = before
        return node

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        names = [one.arg for one in node.args.args]
        serves = self._service and node.name[:1].isupper() and len(names) == 3
        before, self._context = self._context, names[2] if serves else ""
        self._path.append(node.name)
        self.generic_visit(node)
        self._path.pop()
        self._context = before
        return node

    visit_FunctionDef = _function  # noqa: N815
    visit_AsyncFunctionDef = _function  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        before, self._context = self._context, ""
        self.generic_visit(node)
        self._context = before
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        context = self._context
        self.generic_visit(node)
        if context and node.value is not None:
            name = self._site("reply")
            arguments = [ast.Constant(name), node.value, ast.Name(context, ast.Load())]
            node.value = ast.Call(ast.Name(REPLY, ast.Load()), arguments, [])
        return node

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        context = self._context
        self.generic_visit(node)
        return _between(self._site("reply"), node) if context else node

    def visit_Await(self, node: ast.Await) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call) and (what := kind_of_call(call, True)):
            self.generic_visit(call)
            return _between(self._site(what), node)
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        what = kind_of_call(node, False)
        self.generic_visit(node)
        return _between(self._site(what), node) if what else node

    def _with(self, node: ast.With | ast.AsyncWith) -> ast.AST:
        for item in node.items:
            if opens_transaction(item):
                arguments = [ast.Constant(self._site("transaction")), item.context_expr]
                item.context_expr = ast.Call(ast.Name(TRANSACTION, ast.Load()), arguments, [])
        self.generic_visit(node)
        return node

    visit_With = _with  # noqa: N815


def _between(name: str, node: ast.expr) -> ast.expr:
    """`(pass(before), node, pass(after))[1]`: evaluated in this order, also around an await."""

    def passing(moment: str) -> ast.expr:
        return ast.Call(ast.Name(PASS, ast.Load()), [ast.Constant(f"{name}:{moment}")], [])

    three = ast.Tuple([passing("before"), node, passing("after")], ast.Load())
    return ast.copy_location(ast.Subscript(three, ast.Constant(1), ast.Load()), node)


def weave(module: str, source: bytes | str, path: str) -> tuple[ast.Module, list[Site]]:
    """A module's tree with its points in it, and its sites."""
    weaver = Weaver(module)
    tree = weaver.visit(ast.parse(source, path))
    return ast.fix_missing_locations(tree), weaver.sites


def modules(role: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of every module that a role's process may load."""
    for tree in TREES[role]:
        top = ROOT / tree
        for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def journalled() -> list[str]:
    """Every kind of step that the coordinator's journal may hold."""
    tree = ast.parse((ROOT / f"{JOURNAL.replace('.', '/')}.py").read_bytes())
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in targets] == ["Event"]:
            return [one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)]
    raise AssertionError(f"{JOURNAL} has no union of events")


def sites(role: str) -> list[Site]:
    """Every site of a role, excluded ones included."""
    found = [
        site for module, path in modules(role) for site in weave(module, path.read_bytes(), "")[1]
    ]
    if role == "coordinator":
        found += [Site(f"{JOURNAL}:{event}:journal", "transaction") for event in journalled()]
    return found


def points(role: str) -> list[str]:
    """Every point that a running process of a role must be killed at."""
    return [point for site in sites(role) if site.serves(role) for point in site.points]


if __name__ == "__main__":
    for each in TREES:
        wanted = points(each)
        print(each, len(wanted), *wanted, sep="\n  ")  # noqa: T201
