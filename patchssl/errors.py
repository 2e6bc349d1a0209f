"""The errors that a user can cause. Each message says what came, what is allowed and what to do."""


class PatchsslError(Exception):
    """Something that the user can mend; the command line prints it as one line and exits with 1."""


class ConfigError(PatchsslError):
    """A configuration value or key that cannot be used."""


class DataError(PatchsslError):
    """Images, labels or features that are missing, unreadable or contradict each other."""


class CheckpointError(PatchsslError):
    """A checkpoint or run folder that cannot be read, written or continued."""


class FormatError(CheckpointError):
    """A checkpoint of another format, whole but not for this version."""


class TrainingError(PatchsslError):
    """Training that cannot go on, for instance because the loss is not finite."""


class LoaderError(PatchsslError):
    """Images that cannot be made ahead any more, since a process that makes them died."""


class UnforeseenError(LoaderError):
    """Images that could not be made for a reason that only the traceback of the error's cause can tell."""
