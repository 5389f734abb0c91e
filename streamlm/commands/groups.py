"""Groups of options: a command takes one value for a group, and the command line shows every option of it."""

from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_origin

from streamlm.limits import SEED, TOKENS


def spread_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command as typer reads it: the options of each group instead of the group.

    A group is a frozen dataclass; its fields that are `Annotated` are options, in their order, with their
    defaults. ``def evaluate(source: SourceOptions, n_sink: NSink)`` becomes
    ``def evaluate(*, model_name, dataset_name, ..., n_sink)``.
    """
    parameters = signature(command).parameters.values()
    groups: dict[str, Any] = {
        asked.name: asked.annotation for asked in parameters if is_dataclass(asked.annotation)
    }
    options = [
        option.replace(kind=Parameter.KEYWORD_ONLY)
        for asked in parameters
        for option in (map(_option, _options_of(groups[asked.name])) if asked.name in groups else [asked])
    ]

    def spread(**given: Any) -> None:
        _check_numbers(given)
        values = {
            name: group(**{option.name: given.pop(option.name) for option in _options_of(group)})
            for name, group in groups.items()
        }
        command(**values, **given)

    spread.__name__, spread.__doc__ = command.__name__, command.__doc__
    spread.__annotations__ = {option.name: option.annotation for option in options}
    spread.__signature__ = Signature(options)  # type: ignore[attr-defined]
    return spread


def _check_numbers(given: dict[str, Any]) -> None:
    """Refuse whole numbers that no measurement has, before it takes hours or leaves the range of torch."""
    for name, value in given.items():
        limit = SEED if name == "seed" else TOKENS
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > limit:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at most {limit:,}; give a smaller number"
                )


def _options_of(group: Any) -> list[Field[Any]]:
    return [field for field in fields(group) if get_origin(field.type) is Annotated]


def _option(field: Field[Any]) -> Parameter:
    return Parameter(field.name, Parameter.KEYWORD_ONLY, annotation=field.type, default=field.default)
