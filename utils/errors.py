"""How a script ends when the user, and not the code, is wrong."""

import errno
import os
import sys
from collections.abc import Callable

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """What was found, what was expected and what to do, in one line."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` or a full disk becomes one line on stderr and exit code 2.

    A bug still shows its traceback.
    """
    try:
        main()
    except UserError as error:
        sys.exit(_fail(" ".join(str(error).split())))
    except (NotADirectoryError, FileExistsError, IsADirectoryError, PermissionError) as error:
        sys.exit(_fail(f"{error.filename}: {error.strerror}; choose another place"))
    except Exception as error:  # libraries wrap the system's word for a full disk in errors of their own
        if not any(os.strerror(code) in str(error) for code in FULL_DISK):
            raise
        sys.exit(_fail(f"cannot write the output ({error}); free some disk space and run again"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
