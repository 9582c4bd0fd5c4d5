"""`--set KEY=VALUE`: one more binding, last of all, with the quotes that a shell would take left to us.

A value that cannot be read as gin, or that reads as something the parameter does not take, is text where the parameter takes text.
"""

from collections.abc import Callable, Sequence
from typing import Any

from assay.config.fit import Made, fit
from assay.config.scan import Scan, scan_key
from assay.config.syntax import PYTHON_WORDS, parse_value
from assay.config.values import UNREADABLE, Binding, Macro, Place, Reference
from assay.errors import did_you_mean

_Annotation = Callable[[str, str], Any]


def apply(scan: Scan, overrides: Sequence[str], annotation: _Annotation) -> None:
    """Add each override to the scan's statements, or report why it cannot be.

    annotation: (selector, parameter) -> the parameter's type, or None when it is not known.
    """
    for override in overrides:
        place = Place(f"--set {override}")
        key, sign, content = (part.strip() for part in override.partition("="))
        if not sign or not key:
            scan.report(place, "write --set KEY=VALUE, such as --set experiment.steps=100")
            continue
        scope, selector, parameter = scan_key(key)
        if not parameter and key not in scan.macros:
            hint = did_you_mean(key, scan.macros) or " Write a whole name, such as experiment.steps."
            scan.report(place, f"no macro '{key}' to set.{hint}")
            continue
        value = _value(scan, place, content, _expected(scan, selector, parameter, key, annotation))
        scan.statements.append(Binding(scope, selector, parameter, value, place))


def _expected(scan: Scan, selector: str, parameter: str, key: str, annotation: _Annotation) -> Any:
    """The type that the value must have; for a macro that of the parameter it is used for, else of its present value."""
    if parameter:
        return annotation(selector, parameter)
    uses = (b for m, b in scan.macro_uses() if m.name == key and b.parameter and b.value == m)
    types = [annotation(b.selector, b.parameter) for b in uses]
    return types[0] if types else type(scan.macros[key].value)


def _value(scan: Scan, place: Place, content: str, expected: Any) -> Any:
    """The value as gin reads it, or the text itself where only that fits."""
    takes_text = expected is not None and not fit(content, expected).problems
    try:
        value = parse_value(content)
    except SyntaxError as error:
        if takes_text or (expected is not None and _is_bare_word(content)):
            return content
        scan.report(place, str(error).removeprefix("x: "))
        return UNREADABLE
    return content if takes_text and not _fits(value, expected) else value


def _is_bare_word(content: str) -> bool:
    """Whether it is text without quotes, wherever it was meant to go. Words such as `true` have their own advice."""
    return content.isidentifier() and content.lower() not in PYTHON_WORDS


def _fits(value: Any, expected: Any) -> bool:
    """Whether the value as read is one that the parameter takes. A macro is what it says, and a reference has its kind."""
    if isinstance(value, Macro):
        return True
    if isinstance(value, Reference) and value.called:
        return not fit(Made(value, Any), expected).problems
    return not fit(value, expected).problems
