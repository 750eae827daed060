"""What is raised on purpose, for callers that tell one cause from another.

Every class is also a ValueError, TypeError or RuntimeError, so code that catches those keeps working. Wrong values of
other options are plain ValueErrors, and options that do not exist plain TypeErrors.
"""


class MikernelsError(Exception):
    """The base of all classes here."""


class SamplesError(MikernelsError):
    """Samples that cannot be used. Always a ValueError or a TypeError, too."""


class SamplesValueError(SamplesError, ValueError):
    """An array of the wrong shape, or with values that cannot be used."""


class SamplesTypeError(SamplesError, TypeError):
    """No array of real numbers, or one that cannot be read."""


class UnsupportedError(MikernelsError, ValueError):
    """A device, an implementation or a precision that cannot run here."""


class WorkspaceError(MikernelsError, ValueError):
    """A memory budget that does not hold the smallest piece of the work."""


class RankError(MikernelsError, RuntimeError):
    """Another process has failed, or cannot be reached any more."""
