"""Limits that keep the code readable: files, functions, names, docstrings."""

import ast

from tests.style.tree import sources

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def test_files_are_short() -> None:
    long = {
        source.path: source.text.count("\n")
        for source in sources()
        if source.text.count("\n") > MAX_FILE_LINES
    }
    assert not long


def test_functions_are_short() -> None:
    long = [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


def test_no_module_is_named_for_nothing() -> None:
    for source in sources():
        parts = source.path.removesuffix(".py").split("/")
        assert not FORBIDDEN_NAMES & set(parts), source.path


def test_modules_say_why_they_exist() -> None:
    silent = [source.path for source in sources() if source.text.strip() and not source.docstring]
    assert not silent


def test_no_error_is_swallowed() -> None:
    """`except Exception: pass` hides what went wrong; contextlib.suppress(Exception) is the same in fewer lines."""
    found = []
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body):
                name = getattr(node.type, "id", "")
                if node.type is None or name in {"Exception", "BaseException"}:
                    found.append(f"{source.path}:{node.lineno}")
    assert not found


def test_tests_assert_something() -> None:
    silent = []
    for source in sources():
        if source.package != "tests":
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                body = ast.dump(node)
                if not any(word in body for word in ("Assert(", "raises", "assert", "check", "expect")):
                    silent.append(f"{source.path}:{node.lineno} {node.name}")
    assert not silent
