"""Sends one mail that stdin describes: `python -m node_agent.alert_mail`, a process of its own."""

import json
import os
import smtplib
import ssl
import sys
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Final

from node_agent.alerts import MailSink

TIMEOUT_S: Final = 30.0
PASSWORD_VARIABLE: Final = "FEDDP_MAIL_PASSWORD"  # noqa: S105 - a variable's name


def send(config: MailSink, subject: str, text: str) -> None:
    """Send it to everybody who is named.

    Raises:
        OSError, smtplib.SMTPException: the server did not take it.
    """
    message = EmailMessage()
    message["From"], message["To"] = config.sender, ", ".join(config.to)
    message["Subject"], message["Date"] = subject, formatdate(localtime=True)
    message["Message-ID"] = make_msgid(domain=config.sender.partition("@")[2])
    message.set_content(text)
    host, _, port = config.server.rpartition(":")
    if config.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            host, int(port), timeout=TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        server = smtplib.SMTP(host, int(port), timeout=TIMEOUT_S)
    with server:
        if config.tls == "starttls":
            server.starttls(context=ssl.create_default_context())
        if config.user:
            server.login(config.user, _password(config))
        server.send_message(message)


def _password(config: MailSink) -> str:
    given = os.environ.get(PASSWORD_VARIABLE, "")
    return given or Path(config.password_file).read_text().strip()


def main() -> None:
    """Exit code 1, and one line without any secret, when it was not sent."""
    body = json.load(sys.stdin)
    try:
        send(MailSink.model_validate(body["config"]), body["subject"], body["text"])
    except (OSError, smtplib.SMTPException) as error:
        code = getattr(error, "smtp_code", "")
        sys.stderr.write(f"{type(error).__name__} {code or getattr(error, 'strerror', '') or ''}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
