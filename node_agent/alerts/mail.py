"""Sends one mail that stdin describes: `python -m node_agent.alerts.mail`, a process of its own.

It answers with one line of JSON: `fault`, a sentence without any secret and without what the server
said, empty where the mail was taken; `refused`, addresses that the server did not take with it.
"""

import json
import smtplib
import ssl
import sys
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any, Final

from node_agent.alerts.mail_password import PasswordUnusable, mail_password
from node_agent.alerts.settings import MailSink, host_and_port

TIMEOUT_S: Final = 30.0


class NotOffered(Exception):
    """The server lacks what agent.yaml asks for; a sentence without its full stop."""


def send(config: MailSink, subject: str, text: str) -> list[str]:
    """Send it to everybody who is named; those whom the server refused.

    Raises:
        OSError, smtplib.SMTPException, NotOffered: the server did not take it.
        PasswordUnusable: there is no password to log in with.
    """
    message = EmailMessage()
    message["From"], message["To"] = config.sender, ", ".join(config.to)
    message["Subject"], message["Date"] = subject, formatdate(localtime=True)
    message["Message-ID"] = make_msgid(domain=config.sender.partition("@")[2])
    message.set_content(text)
    password = mail_password(config) if config.user else ""
    host, port = host_and_port(config.server)
    if config.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            host, port, timeout=TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    with server:
        server.ehlo_or_helo_if_needed()
        if config.tls == "starttls":
            if not server.has_extn("starttls"):
                raise NotOffered(
                    "it offers no STARTTLS: give `tls: tls` and its port for that, or `tls: none` "
                    "for a relay on this machine"
                )
            server.starttls(context=ssl.create_default_context())
            server.ehlo()
        if config.user:
            if not server.has_extn("auth"):
                raise NotOffered("it takes no login this way: leave `user` out, or change `tls`")
            server.login(config.user, password)
        return list(server.send_message(message))


def said(config: MailSink, error: Exception) -> str:
    """What happened, in a sentence without its full stop."""
    server = f"the mail server {config.server}"
    match error:
        case PasswordUnusable():
            return str(error)
        case NotOffered():
            return f"{server}: {error}"
        case smtplib.SMTPAuthenticationError():
            return f"{server} refuses user or password ({error.smtp_code})"
        case smtplib.SMTPRecipientsRefused():
            codes = (f"{name} ({answer[0]})" for name, answer in error.recipients.items())
            return f"{server} refuses every recipient: {', '.join(codes)}"
        case smtplib.SMTPSenderRefused():
            return f"{server} refuses the sender {config.sender} ({error.smtp_code})"
        case smtplib.SMTPResponseException():
            return f"{server} did not take the mail ({error.smtp_code})"
        case smtplib.SMTPNotSupportedError():
            return f"{server} takes addresses in ASCII alone; `sender` or `to` hold other letters"
        case smtplib.SMTPServerDisconnected():
            return f"{server} ended the connection; port and `tls` may not fit"
        case ssl.SSLCertVerificationError():
            return f"{server} has a certificate that is not good here ({error.verify_message})"
        case ssl.SSLError():
            return f"{server} speaks no TLS on this port; port and `tls` may not fit"
        case TimeoutError():
            return f"{server} does not answer"
        case OSError() if error.strerror:
            return f"{server} cannot be reached: {error.strerror}"
        case UnicodeError():
            return "`user`, `sender` or `to` holds other than ASCII, which cannot be sent here"
    return f"{server} did not take the mail ({type(error).__name__})"


def main() -> None:
    """Always an answer; nothing on stderr."""
    body: dict[str, Any] = json.load(sys.stdin)
    config = MailSink.model_validate(body["config"])
    fault, refused = "", []
    try:
        refused = send(config, body["subject"], body["text"])
    except Exception as error:  # noqa: BLE001 - a traceback could hold a part of the password
        fault = said(config, error)
    sys.stdout.write(json.dumps({"fault": fault, "refused": refused}))


if __name__ == "__main__":
    main()
