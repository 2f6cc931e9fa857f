"""Who a person is at a coordinator: a folder with an address, a key and a certificate."""

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certs.profile_folder import BUNDLE, CHAIN, DEFAULT_PROJECT, DESCRIPTION, KEY, NEXT_KEY
from protos.errors import Malformed, NotFound

PROFILE_VARIABLE = "FEDDP_PROFILE"
DIR_VARIABLE = "FEDDP_DIR"
CONFIG_NAME = "coordinator.yaml"
DEMO_RESULT = "result.json"
"""What stays of a demo's folder."""


class _ProfileFile(BaseModel):
    """`profile.yaml` as it stands in a profile folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(pattern=r"^\S+:\d{1,5}$", description="host:port of the mTLS port")
    name: str = Field(min_length=1, description="the name that the certificate carries")
    project: str = Field(DEFAULT_PROJECT, min_length=1, description="whose jobs they submit")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a client needs to connect.

    Attributes:
        folder: where it was read from, for messages.
        address: "host:port" of the coordinator's mTLS port.
        name: whom the certificate names, for people.
        key: private key, PEM.
        chain: certificate and the issuing authority's, PEM, leaf first.
        bundle: the root that is trusted, PEM.
        project: whose jobs they submit, when they joined.
    """

    folder: Path
    address: str
    name: str
    key: bytes
    chain: bytes
    bundle: bytes
    project: str = DEFAULT_PROJECT

    @classmethod
    def load(cls, folder: Path) -> "Profile":
        """Read a profile folder: profile.yaml, key.pem, chain.pem, bundle.pem.

        Raises:
            NotFound: PROFILE_MISSING, when a file is not there.
            Malformed: PROFILE_INVALID, when one cannot be read.
        """
        try:
            text = (folder / DESCRIPTION).read_text(encoding="utf-8")
            key, chain, bundle = ((folder / name).read_bytes() for name in (KEY, CHAIN, BUNDLE))
            if (folder / NEXT_KEY).exists():
                key = _key_of(folder, chain, key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                "PROFILE_MISSING",
                f"{error.filename} is missing; a profile folder holds profile.yaml, key.pem, "
                "chain.pem and bundle.pem, as `feddp coordinator init` writes them to operator/ "
                "and `feddp profile join` for whom an operator has invited",
            ) from None
        except (OSError, UnicodeDecodeError):
            raise Malformed(
                "PROFILE_INVALID", f"the files in {folder} cannot be read; check who may read them"
            ) from None
        try:
            entry = _ProfileFile.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError):
            raise Malformed(
                "PROFILE_INVALID",
                f"{folder / 'profile.yaml'} must hold `address: HOST:PORT` and `name: NAME`",
            ) from None
        return cls(folder, entry.address, entry.name, key, chain, bundle, entry.project)


def installation_around(folder: Path) -> Path | None:
    """The coordinator's folder that a folder lies in; None for none."""
    own = folder.resolve()
    return next((one for one in (own, *own.parents) if (one / CONFIG_NAME).is_file()), None)


def installation_in(folder: Path) -> Path:
    """The coordinator's folder in `folder`: itself, or `coordinator/` in a demo's folder.

    Raises:
        NotFound: INSTALLATION_MISSING.
    """
    for candidate in (folder, folder / "coordinator"):
        if (candidate / CONFIG_NAME).is_file():
            return candidate
    if (folder / DEMO_RESULT).is_file():
        raise NotFound(
            "INSTALLATION_MISSING",
            f"{folder} is a demo's without its ledger: it was run without --keep, which leaves the "
            "results alone; run `feddp demo` with --keep and a new --dir, and give that",
        )
    raise NotFound(
        "INSTALLATION_MISSING",
        f"there is no {CONFIG_NAME} in {folder} or {folder / 'coordinator'}; give the folder that "
        "`feddp coordinator init --dir` wrote",
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which installation a command is about: a folder on this machine, or a profile."""

    dir: Path | None
    profile: Path | None

    @classmethod
    def of(cls, folder: Path | None, profile: Path | None) -> "Selection":
        """What the options say or, when there are none, the environment.

        Raises:
            Malformed: SELECTION_CONFLICT, SELECTION_MISSING.
        """
        if folder is not None and profile is not None:
            raise Malformed("SELECTION_CONFLICT", "give --dir or --profile, not both")
        if folder is None and profile is None:
            if text := os.environ.get(PROFILE_VARIABLE):
                profile = Path(text)
            elif text := os.environ.get(DIR_VARIABLE):
                folder = Path(text)
        if folder is None and profile is None:
            raise Malformed(
                "SELECTION_MISSING",
                "which installation? Give --dir DIR (the folder of `feddp coordinator init`) or "
                f"--profile FOLDER, or set {DIR_VARIABLE} or {PROFILE_VARIABLE}",
            )
        return cls(folder, profile)

    def installation(self) -> Path | None:
        """The coordinator's folder on this machine; None when a profile was given.

        Raises:
            NotFound: INSTALLATION_MISSING.
        """
        return None if self.dir is None else installation_in(self.dir)

    def load_profile(self) -> Profile:
        """The profile: that of the options, or the operator's of the installation.

        Raises:
            NotFound: INSTALLATION_MISSING, PROFILE_MISSING.
            Malformed: PROFILE_INVALID.
        """
        installation = self.installation()
        if installation is not None:
            return Profile.load(installation / "operator")
        return Profile.load(self.profile or Path())


def _key_of(folder: Path, chain: bytes, key: bytes) -> bytes:
    """The key that the certificate is for: a renewal may have ended between two renames."""
    from cryptography import x509

    from certs.enrolment import load_certificate_key
    from protos.errors import FeddpError

    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        if load_certificate_key(folder / NEXT_KEY).public_key() == leaf.public_key():
            return (folder / NEXT_KEY).read_bytes()
    except (ValueError, IndexError, FeddpError):
        pass
    return key
