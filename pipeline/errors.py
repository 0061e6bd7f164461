"""Errors that end a run, each with the exit code it means."""

from __future__ import annotations

__all__ = ["ConfigError", "PipelineError"]


class PipelineError(RuntimeError):
    """The work cannot be done; the message says what is wrong and what would mend it."""


class ConfigError(ValueError):
    """The command or its config is wrong; the message names the key and what is allowed."""
