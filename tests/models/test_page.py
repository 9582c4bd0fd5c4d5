"""The page about models: its example runs."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/kinds/model.md"


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
