"""Small changes to a module, each of which some test should notice: made from its syntax tree, one at a time.

Never changed: docstrings, annotations, imports, ``__all__``, f-strings and whatever is raised (the text of messages).
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_PAIRS = [("amax", "amin"), ("max", "min"), ("mean", "sum"), ("zeros_", "ones_"), ("any", "all"), ("log1p", "log")]
RENAMED = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])} | {
    "nanmean": "nansum", "nansum": "nanmean", "cummin": "cummax", "xavier_uniform_": "zeros_",
}  # fmt: skip
# Calls that leave a value of the same kind behind when they are left out: f(x) or x.f() becomes x.
DROPPED = {
    "sigmoid", "logsigmoid", "gelu", "normalize", "upcast", "sqrt", "softmax", "clamp", "exp", "log", "float",
    "double", "abs", "contiguous", "detach", "flip", "expand", "masked_fill", "to",
}  # fmt: skip
MODULES = {"F", "torch", "math", "nn", "np"}


# Node to replace, operator, new text, what to say of it, enclosing function.
_Change = tuple[ast.expr | ast.stmt, str, str, str, str]


@dataclass(frozen=True)
class Mutant:
    """One changed module.

    Attributes:
        key: What it is, whatever its line number: file, function, line, change, and its number among those alike.
        line: Where the change begins.
        column: As there, in bytes.
        operator: Kind of change.
        source: Text of the whole changed module.
    """

    key: str
    line: int
    column: int
    operator: str
    source: str


def mutants(name: str, source: str) -> list[Mutant]:
    """All mutants of a module that compile and are not the module itself, in the order of its lines."""
    raw = source.encode()
    lines = raw.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    known = {ast.dump(tree)}
    changes = sorted(_changes(tree, []), key=lambda change: (change[0].lineno, change[0].col_offset))
    found: list[Mutant] = []
    counts: dict[str, int] = {}
    for node, operator, text, said, where in changes:
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        changed = (raw[:begin] + text.encode() + raw[end:]).decode()
        try:
            dump = ast.dump(compile(changed, name, "exec", ast.PyCF_ONLY_AST))
            compile(changed, name, "exec")
        except SyntaxError:
            continue
        if dump in known:
            continue
        known.add(dump)
        key = f"{name} {where or 'module'} | {lines[node.lineno - 1].decode().strip()} | {operator}: {said}"
        counts[key] = counts.get(key, 0) + 1
        key += f" #{counts[key]}" if counts[key] > 1 else ""
        found.append(Mutant(key, node.lineno, node.col_offset, operator, changed))
    return found


def _changes(node: ast.AST, where: list[str]) -> Iterator[_Change]:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.Assign) and any(isinstance(x, ast.Name) and x.id == "__all__" for x in node.targets):
        return
    if isinstance(node, ast.Subscript) and (ast.unparse(node.value) == "Literal" or _is_text(node.slice)):
        return  # A wrong key is always noticed.
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = [*where, node.name]
        for decorator in node.decorator_list:
            # A decorator that does nothing; those that make a dataclass or a property are used everywhere.
            if ast.unparse(decorator).endswith("no_grad()"):
                yield decorator, "decorator", "(lambda f: f)", f"no @{ast.unparse(decorator)}", ".".join(where)
    for operator, new in _replacements(node):
        text = ast.unparse(new)
        text = f"({text})" if isinstance(node, ast.expr) else text
        yield node, operator, text, _said(operator, node, new), ".".join(where)
    for condition in _conditions(node):
        for value in ("True", "False"):
            yield condition, "condition", value, f"{_short(condition)} -> {value}", ".".join(where)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if isinstance(child, ast.AST) and not docstring:
                yield from _changes(child, where)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _conditions(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return [node.test]
    return node.ifs if isinstance(node, ast.comprehension) else []


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Operator and the node to put in the place of ``node``."""
    match node:
        case ast.BinOp(op=op) if type(op) in BINARY:
            yield "arithmetic", _with(node, op=BINARY[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield "drop sign", node.operand
        case ast.Compare():
            for i, op in enumerate(node.ops):
                yield "compare", _with(node, ops=[*node.ops[:i], COMPARE[type(op)](), *node.ops[i + 1 :]])
        case ast.BoolOp():
            yield "and/or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.Constant():
            for value in _constants(node.value):
                yield "constant", ast.Constant(value)
        case ast.Expr(value=ast.Call()):
            yield "drop statement", ast.Pass()
        case ast.Call():
            yield from _calls(node)


def _constants(value: object) -> list[object]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, 0] if value == 1 else [value + 1]
        case float():
            return [2 * value if value else 1.0]
        case str():
            return [value + "?"]
    return []


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            yield "drop argument", _with(node, keywords=[*node.keywords[:i], *node.keywords[i + 1 :]])
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in RENAMED:
        attribute = isinstance(function, ast.Attribute)
        changed = _with(function, attr=RENAMED[name]) if attribute else ast.Name(RENAMED[name], ast.Load())
        yield "rename", _with(node, func=changed)
    if name in DROPPED:
        method = isinstance(function, ast.Attribute) and ast.unparse(function.value) not in MODULES
        if method:
            yield "drop call", function.value
        elif node.args:
            yield "drop call", node.args[0]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _said(operator: str, node: ast.AST, new: ast.AST) -> str:
    if operator == "drop argument":
        assert isinstance(node, ast.Call)
        assert isinstance(new, ast.Call)
        gone = next(keyword for keyword in node.keywords if keyword not in new.keywords)
        return f"{_short(node.func)}(… {_short(gone.value, gone.arg)})"
    if operator == "drop statement":
        return _short(node, limit=60)
    if isinstance(node, ast.BinOp) and isinstance(new, ast.BinOp):
        return f"{_short(node.left)} {_sign(node)} {_short(node.right)} -> {_sign(new)}"
    return f"{_short(node)} -> {_short(new)}"


def _sign(node: ast.BinOp) -> str:
    return ast.unparse(ast.BinOp(ast.Name("x"), node.op, ast.Name("x")))[1:-1].strip()


def _short(node: ast.AST, name: str | None = None, limit: int = 40) -> str:
    text = ast.unparse(node) if name is None else f"{name}={ast.unparse(node)}"
    return text if len(text) <= limit else text[: limit - 1] + "…"
