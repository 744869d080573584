"""Errors a user can act on. Each says what was got, what is allowed and the command that mends it."""


class FrDeployError(Exception):
    """Base of all expected errors; the CLI prints the message without a traceback and exits with `exit_code`."""

    exit_code = 1


class UsageError(FrDeployError):
    """The request cannot be carried out as asked (bad option value, colliding outputs)."""

    exit_code = 2


class NoInputError(FrDeployError):
    """Nothing to do: the source is missing, empty, or holds no readable image."""

    exit_code = 4


class ModelError(FrDeployError):
    """A bundle, engine or configuration is missing, damaged, or does not match."""

    exit_code = 5


class ResourceError(FrDeployError):
    """The machine lacks something: memory, disk space, a device, an optional package."""

    exit_code = 6


class ImageError(FrDeployError):
    """One image cannot be read or written; `reason` is a short stable code such as `truncated`."""

    exit_code = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
