"""Options in ultralytics' manner: `format=engine half=True`."""

from collections.abc import Callable, Sequence

from fr_deploy.errors import UsageError

_FORMATS = {
    "onnx": "onnx",
    "engine": "tensorrt-rtx",  # the flavour that builds on any machine
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UsageError(f"{value!r} is neither True nor False")
    return value.lower() == "true"


_WORDS: dict[str, Callable[[str], dict[str, str]]] = {
    "model": lambda value: {"model": value},
    "format": lambda value: {"format": _FORMATS.get(value, value)},
    "half": lambda value: {"precision": "fp16" if _truth(value) else "fp32"},
    "batch": lambda value: {"batch": value},
}


def spoken(words: Sequence[str]) -> dict[str, str]:
    """Options by our names.

    Args:
        words: such as "format=engine"; one without "=" is the model.

    Raises:
        UsageError: another word, another value, or an option twice.
    """
    made: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "model", word
        if key not in _WORDS:
            raise UsageError(
                f"{word!r} is no option; allowed are {', '.join(f'{k}=...' for k in _WORDS)}, and those that "
                "fr-deploy export --help lists"
            )
        for option, chosen in _WORDS[key](value).items():
            if option in made:
                raise UsageError(f"{option} is given twice: {made[option]!r} and {chosen!r}")
            made[option] = chosen
    return made
