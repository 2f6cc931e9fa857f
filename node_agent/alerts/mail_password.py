"""The password for a hospital's mail server: from a variable or a file, and what is wrong with it.

Read by the process that sends and by `feddp agent doctor`; no message holds a part of it.
"""

import os
from pathlib import Path
from typing import Final

from node_agent.alerts.settings import MailSink

PASSWORD_VARIABLE: Final = "FEDDP_MAIL_PASSWORD"  # noqa: S105 - a variable's name


class PasswordUnusable(Exception):
    """Why there is no password to log in with; a sentence without its full stop."""


def mail_password(config: MailSink) -> str:
    """What `user` logs in with.

    Raises:
        PasswordUnusable: there is none, or none that can be sent.
    """
    given = os.environ.get(PASSWORD_VARIABLE, "")
    if given:
        return _usable(given, f"the variable {PASSWORD_VARIABLE}")
    if not config.password_file:
        raise PasswordUnusable(
            f"`user` is given, and neither `password_file` nor the variable {PASSWORD_VARIABLE}"
        )
    place = f"the password file {config.password_file}"
    try:
        text = Path(config.password_file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PasswordUnusable(f"{place} is not UTF-8; write it anew") from None
    except OSError as error:
        raise PasswordUnusable(f"{place} cannot be read here: {error.strerror}") from None
    except ValueError:
        raise PasswordUnusable(f"{place!r} is no path") from None
    return _usable(text.strip(), place)


def _usable(password: str, place: str) -> str:
    if not password:
        raise PasswordUnusable(f"{place} is empty")
    if len(password.splitlines()) > 1:
        raise PasswordUnusable(f"{place} holds more than one line; leave the password alone in it")
    if not password.isascii():
        raise PasswordUnusable(
            f"the password in {place} holds other than ASCII, which cannot be sent to a mail "
            "server here; set another one"
        )
    return password
