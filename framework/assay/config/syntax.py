"""Parses gin text with gin's own parser, and goes on after a mistake so that one reading finds every one of them.

gin stops at the first syntax error. Here the statement at fault is replaced by one whose value is UNREADABLE and the
text is parsed again, until it parses.
"""

import ast
import io
import re
import tokenize
from typing import Any, NamedTuple

from gin import config_parser

from assay.config.values import UNREADABLE, Macro, Reference
from assay.kinds import KINDS

_STATEMENT = re.compile(r"(?P<indent>\s*)(?:(?P<key>[A-Za-z_][\w./]*)\s*(?P<sign>[=:])|(?:include|import|from)\b|\S)")
_UNREADABLE = "assay_unreadable"
PYTHON_WORDS = {"true": "True", "false": "False", "none": "None", "null": "None", "yes": "True", "no": "False"}


class Mistake(NamedTuple):
    """A syntax error: its 1-based line, what to do, and the statement that it is in."""

    line: int
    message: str
    statement: str


def parse(content: str) -> tuple[list[Any], list["Mistake"]]:
    """gin's statements, with Reference, Macro and UNREADABLE values, and every syntax error."""
    lines = content.split("\n")  # as the tokenizer counts lines
    mistakes: list[Mistake] = []
    for _ in range(len(lines) + 1):  # each round mends one statement
        try:
            statements = list(config_parser.ConfigParser("\n".join(lines) + "\n", _Delegate()))
        except (SyntaxError, tokenize.TokenError) as error:
            mistakes.append(_blame(lines, error))
        else:
            return [s for s in statements if not _is_placeholder(s)], sorted(mistakes)
    return [], sorted(set(mistakes))


def parse_value(content: str) -> Any:
    """One value. Raises SyntaxError with a message for the user."""
    statements, mistakes = parse(f"x = {content}")
    if mistakes:
        raise SyntaxError(mistakes[0].message)
    if len(statements) != 1 or "\n" in content:
        raise SyntaxError("give one value")
    return statements[0].value


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
    """Keeps references and macros as plain data."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name: str) -> Any:
        return UNREADABLE if macro_name == _UNREADABLE else Macro(macro_name)


def _is_placeholder(statement: Any) -> bool:
    return isinstance(statement, config_parser.BindingStatement) and _UNREADABLE in (
        statement.selector,
        statement.arg_name,
    )


def _blame(lines: list[str], error: SyntaxError | tokenize.TokenError) -> Mistake:
    """Find the statement at fault, replace it in `lines`, and say what is wrong with it."""
    at = _error_line(error, len(lines))
    starts = [i for i, line in enumerate(lines) if _starts_statement(lines, i)]
    start, end, unclosed = _culprit(lines, starts, at)
    statement = "\n".join(lines[start:end])
    match = _STATEMENT.match(lines[start])
    indent = match["indent"] if match else ""
    key = match["key"] if match and match["sign"] == "=" else _UNREADABLE
    message = f"'{unclosed}' is never closed: close it" if unclosed else _advice(statement, _raw(error))
    valid = re.fullmatch(r"(\w+/)*\w+(\.\w+)*", key)
    lines[start:end] = [f"{indent}{key if valid else _UNREADABLE} = %{_UNREADABLE}", *[""] * (end - start - 1)]
    return Mistake(start + 1 if unclosed else max(start, min(at, end - 1)) + 1, message, statement)


def _error_line(error: SyntaxError | tokenize.TokenError, count: int) -> int:
    """0-based line of the error; gin puts its location tuple where Python has details."""
    place = error.args[1] if len(error.args) > 1 else (None, count)
    number = place[0] if isinstance(error, tokenize.TokenError) else place[1]
    return max(0, min(int(number or count), count) - 1)


def _raw(error: Exception) -> str:
    """The parser's words, without its account of tokens."""
    return str(error.args[0]).split("\n")[0].partition("  Got")[0]


def _starts_statement(lines: list[str], index: int) -> bool:
    """Whether a line looks like the start of a statement: a key with = or :, or a keyword."""
    match = _STATEMENT.match(lines[index])
    if match is None or lines[index].lstrip().startswith("#"):
        return False
    return bool(match["key"]) or (not match["indent"] and lines[index][0] not in ")]}")


def _culprit(lines: list[str], starts: list[int], at: int) -> tuple[int, int, str]:
    """(first line, line after, unclosed bracket or ""): the first statement that leaves a bracket open, else the one at the error."""
    spans = [(s, e) for s, e in zip(starts, [*starts[1:], len(lines)], strict=True) if s <= at]
    for start, end in spans:
        if bracket := _open_bracket("\n".join(lines[start:end])):
            return start, end, bracket
    if not spans:
        return at, at + 1, ""
    start, end = spans[-1]
    return start, _trimmed(lines, start, end), ""


def _trimmed(lines: list[str], start: int, end: int) -> int:
    """The end of a statement without the blank lines and comments after it."""
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end


def _open_bracket(statement: str) -> str:
    """The innermost bracket that the statement leaves open."""
    stack: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(statement.lstrip() + "\n").readline):
            if token.type == tokenize.OP and token.string in "([{":
                stack.append(token.string)
            elif token.type == tokenize.OP and token.string in ")]}" and stack:
                stack.pop()
    except (tokenize.TokenError, SyntaxError):
        pass  # the brackets counted so far tell
    return stack[-1] if stack else ""


def _advice(statement: str, raw: str) -> str:
    """What to write instead, for the usual mistakes; gin's own words for the others."""
    key, sign, value = (part.strip() for part in _split(statement))
    if not sign:
        name, _, rest = statement.strip().partition(" ")
        if re.fullmatch(r"[\w./]+", name) and rest.strip() and name not in ("include", "import", "from"):
            return f"'=' is missing: write {name} = {rest.strip()}"
        return f"cannot read '{_short(statement)}': {raw.rstrip('.')}. Write KEY = VALUE."
    if not re.fullmatch(r"[A-Za-z_][\w./]*", key):
        return f"cannot read '{_short(statement)}': {raw.rstrip('.')}. Write KEY = VALUE."
    if not value:
        return f"{key} has no value: write {key} = VALUE"
    return f"{key}: {_value_advice(value, raw)}"


def _split(statement: str) -> tuple[str, str, str]:
    key, sign, value = statement.partition("=")
    return key, sign, re.sub(r"\s+#.*", "", value)


def _value_advice(value: str, raw: str) -> str:
    kinds = "|".join(kind.name for kind in KINDS)
    if called := re.search(r"@[\w./]+\((?=\s*[^)\s])", value):
        return f"a reference takes no arguments: write {called[0]}) and bind its parameters on lines of their own"
    if forgotten := re.search(rf"(?<![\w./@'\"])((\w+/)*({kinds})\.\w+)(\(\))?", value):
        return f"a plugin needs @ before its name: write @{forgotten[1]}()"
    if value[:1] in "'\"" and value.count(value[0]) % 2:
        return f"the text {_short(value)} is never closed; end it with {value[0]}"
    if _is_arithmetic(value):
        return f"gin does not compute: write the result of {_short(value)} instead"
    for word in re.findall(r"(?<![\w./@%'\"])[A-Za-z_]\w*(?![\w'\"])", value):
        if word not in ("True", "False", "None"):
            return _word_advice(word)
    allowed = "a number, 'text', True, False, None, [..], (..), {..}, @plugin() or %MACRO"
    return f"cannot read '{_short(value)}': {raw.rstrip('.')}. Write {allowed}."


def _word_advice(word: str) -> str:
    if word.lower() in PYTHON_WORDS:
        return f"write {PYTHON_WORDS[word.lower()]} for {word}"
    return f"cannot read the bare word {word}: write '{word}' if it is text, %{word} if it is a macro"


def _is_arithmetic(value: str) -> bool:
    """Whether the value is a sum, product or such, of numbers and macros."""
    try:
        tree = ast.parse(re.sub(r"%(?=[A-Za-z_])", "", value), mode="eval")
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.BinOp) for node in ast.walk(tree))


def _short(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= 60 else line[:57] + "..."
