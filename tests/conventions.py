"""The project's own rules of style, as functions from source text to complaints.

Knows only the syntax tree. What a general linter can say is left to ruff, and who may import whom
to import-linter.
"""

import ast
import re
from collections.abc import Callable, Iterator

from diffusiongemma.core.shapes import LETTERS

MAX_FILE = 400
MAX_FUNCTION = 60

Check = Callable[[str], Iterator[str]]

# Opening any of these can run code that came with the data.
_UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
_UNSAFE_CALLS = {"eval", "exec", "torch.load"}
_PRINTS = {"print", "sys.stdout.write", "sys.stderr.write"}
_SUFFIXED = re.compile(r"[a-z_][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def size(source: str) -> Iterator[str]:
    """Files and functions that one cannot hold in the head."""
    lines = len(source.splitlines())
    if lines > MAX_FILE:
        yield f"1: file of {lines} lines; at most {MAX_FILE}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= MAX_FUNCTION:
                yield f"{node.lineno}: {node.name} has {length} lines; under {MAX_FUNCTION}"


def docstring(source: str) -> Iterator[str]:
    """Files that do not open by saying what they know."""
    if source.strip() and not ast.get_docstring(ast.parse(source)):
        yield "1: no docstring that says what this file knows"


def imports(source: str) -> Iterator[str]:
    """Imports that are never right in this package."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "__future__" and any(a.name == "annotations" for a in node.names):
                yield f"{node.lineno}: postponed annotations hide shapes from the shape checks"
            if node.module == "torch" and any(a.name == "load" for a in node.names):
                yield f"{node.lineno}: torch.load opens pickles, which can run code"
        for name in names:
            root = name.partition(".")[0]
            if root in _UNSAFE_MODULES:
                yield f"{node.lineno}: {root} can run the code it reads"
            if root == "transformers":
                yield f"{node.lineno}: transformers is the oracle of the tests only"


def unsafe_calls(source: str) -> Iterator[str]:
    """Calls that run code found in data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in _UNSAFE_CALLS:
            yield f"{node.lineno}: {name}() can run the code it reads"


def raises(source: str) -> Iterator[str]:
    """User errors that are none of the package's kinds."""
    bare = {"Exception", "OSError", "RuntimeError", "TypeError", "ValueError"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if ast.unparse(called) in bare:
                yield f"{node.lineno}: raises {ast.unparse(called)}; use a kind of core/errors.py"


def shapes(source: str) -> Iterator[str]:
    """Shape suffixes outside the legend, or at odds with their annotation."""
    for line, name, annotation in sorted(_names(source), key=lambda found: found[:2]):
        match = _SUFFIXED.fullmatch(name)
        if match is None:
            continue
        unknown = sorted(set(match[1]) - set(LETTERS) - set("0123456789"))
        if unknown:
            yield f"{line}: {name} uses {', '.join(unknown)}, not in core/shapes.py"
        axes = _axes(annotation)
        if axes is not None and axes != match[1]:
            yield f"{line}: {name} is annotated with the axes {axes}"


def _names(source: str) -> Iterator[tuple[int, str, ast.expr | None]]:
    """Every function, parameter, variable and field: line, name, annotation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _Function):
            yield node.lineno, node.name, node.returns
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id, node.annotation
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id, None


def _axes(annotation: ast.expr | None) -> str | None:
    """`BL` for `Float[Tensor, "B L"] | None`; None where axes are absent or computed."""
    for node in ast.walk(annotation) if annotation else ():
        match node:
            case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(value=str(text))])):
                axes = [axis.lstrip("#?") for axis in text.split()]
                return "".join(axes) if all(axis.isalnum() for axis in axes) else None
    return None


def prints(source: str) -> Iterator[str]:
    """Output that did not pass a door which cleans it; a fixed text needs none."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in _PRINTS:
            continue
        fixed = (isinstance(one, ast.Constant) or ast.unparse(one).isupper() for one in node.args)
        if not all(fixed):
            yield f"{node.lineno}: {ast.unparse(node.func)}(); use cli/output.py"


def choices(source: str) -> Iterator[str]:
    """Questions that choose a backend: device types, gradients, Triton. They have places."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                if any(isinstance(one, ast.Attribute) and one.attr == "type" for one in sides):
                    yield f"{node.lineno}: asks for the type of a device"
            case ast.Attribute(attr="is_cuda" | "is_cpu" | "is_meta"):
                yield f"{node.lineno}: asks for the type of a device"
            case ast.Attribute(attr="is_grad_enabled") | ast.alias(name="is_grad_enabled"):
                yield f"{node.lineno}: asks whether gradients are wanted"
            case ast.alias(name="no_triton") | ast.Attribute(attr="no_triton"):
                yield f"{node.lineno}: asks whether Triton is there"
            case ast.ImportFrom(module=str(module)) if "triton" in module.split("."):
                yield f"{node.lineno}: calls Triton's kernels"
            case ast.Import() if any("triton" in one.name.split(".") for one in node.names):
                yield f"{node.lineno}: calls Triton's kernels"


EVERYWHERE: tuple[Check, ...] = (size, docstring, imports, unsafe_calls, raises, shapes, prints)
