"""What can go wrong: calls that fail, and promises that break."""


class Failed(Exception):
    """A call failed with EIO, EBADF or ESTALE: the disk's failure, or a lost lock. Nobody can tell which."""


class NoSpace(Failed):
    """ENOSPC or EDQUOT. The server answers so only under a lock that still holds."""


class Broken(Exception):
    """A promise is broken: the model's finding."""


class Stuck(Exception):
    """The history can't go on, for example because the journal is full of rebuilds. Not a promise of the model."""
