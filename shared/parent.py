"""A child process' tie to its parent, so that a kill -9 of the parent leaves nothing behind."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process when its parent is gone. Called in the child, as early as possible (Linux).

    `parent_pid` is the parent as known before the child was made: it may have died before this call.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
