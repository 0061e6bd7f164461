"""Errors that end a run, each with the exit code it means."""

from __future__ import annotations

from caffeio.errors import within_limits

__all__ = ["ConfigError", "PipelineError"]


class PipelineError(RuntimeError):
    """The work cannot be done; the message says what is wrong and what would mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(within_limits(message))


class ConfigError(ValueError):
    """The command or its config is wrong; the message names the key and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(within_limits(message))
