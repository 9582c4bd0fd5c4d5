"""Checks of model settings; each raises ValueError naming the parameter and its value."""


def at_least(low: int, **values: int | None) -> None:
    """Every value that is given is `low` or more."""
    for name, value in values.items():
        if value is not None and value < low:
            raise ValueError(f"{name} = {value}: must be at least {low}")


def divides(name: str, value: int, of: str, whole: int, otherwise: str = "") -> None:
    """`value` divides `whole`."""
    if whole % value:
        raise ValueError(f"{name} = {value}: must divide {of} = {whole}{otherwise and ', ' + otherwise}")


def fraction(name: str, value: float) -> None:
    """0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} = {value}: must be at least 0 and less than 1")
