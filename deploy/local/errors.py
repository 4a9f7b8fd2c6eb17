"""What can go wrong while starting or running the mesh on this machine."""


class StartError(Exception):
    """Something does not start. The message is one line that says what is wrong and how to mend it."""
