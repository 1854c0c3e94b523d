"""How a run that had started ends early: `__main__` turns each into its exit status, without a traceback."""


class StageFailed(Exception):
    """A stage could not finish; the message says which and why. Exit status 1."""


class Interrupted(Exception):
    """A signal stopped the run.

    Args:
        message: what was stopped and how to go on.
        status: the exit status, 128 + the signal's number.
    """

    def __init__(self, message: str, status: int):
        self.status = status
        super().__init__(message)
