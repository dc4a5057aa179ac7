"""What a user can fix, found in the errors that a run raised."""

from __future__ import annotations

import re

from rlhf_lightning.errors import UserError

CLASS_FAULT = r"Problem with given class_path '([^']+)': (.+?)(?: Requirement '| - |$)"


def user_error(error: BaseException) -> UserError | None:
    """Find the error that a user can fix, also inside the error that jsonargparse or Lightning raised from it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return cause
    found = re.search(CLASS_FAULT, " ".join(str(error).split())) if isinstance(error, Exception) else None
    return UserError(f"{found[1]} cannot be made: {found[2]}") if found else None
