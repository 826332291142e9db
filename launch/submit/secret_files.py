"""Which files look like secrets, by their names and by the keys in them.

All names are here, as data.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePath

# A file's own name, in lower case.
NAMES = (
    # variables
    ".env",
    ".env.*",
    "*.env",
    ".envrc",
    # logins of programs
    ".netrc",
    "_netrc",
    ".pgpass",
    ".my.cnf",
    ".pypirc",
    ".npmrc",
    ".git-credentials",
    ".htpasswd",
    ".dockercfg",
    ".s3cfg",
    ".boto",
    ".vault-token",
    ".cdsapirc",
    "rclone.conf",
    "kaggle.json",
    "kubeconfig",
    ".token",
    "*.token",
    # keys
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    "*.pem",
    "*.key",
    "*.ppk",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    # clouds
    "credentials",
    "credentials.json",
    "credentials.csv",
    "credentials.ini",
    "credentials.toml",
    "credentials.y*ml",
    "application_default_credentials.json",
    "client_secret*.json",
    "service[-_]account*.json",
    "secrets.json",
    "secrets.toml",
    "secrets.ini",
    "secrets.y*ml",
    "*.tfstate",
)
# Any folder above it.
FOLDERS = (".aws", ".ssh", ".gnupg", ".kube", ".azure", "gcloud")
# The end of its path.
ENDS = (".docker/config.json", "huggingface/token")
# Endings of what shows a form and holds no secret.
EXAMPLES = (".example", ".sample", ".template", ".dist")

# one of them is in every key: quickly looked for
MARKS = (b"PRIVATE KEY", b"PuTTY-User-Key-File-", b"AGE-SECRET-KEY-1")
_HEADER = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
# A header in a string is a key's where a key follows: programs that look for keys have the header
# alone.
KEYS = re.compile(
    rb"(?m:^)"
    + _HEADER
    + rb"|"
    + _HEADER
    + rb"(?:\\r|\\n|\r|\n)+[A-Za-z0-9+/=]{32}"
    + rb"|(?m:^)---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----"
    + rb"|\APuTTY-User-Key-File-\d"
    + rb"|(?m:^)AGE-SECRET-KEY-1[A-Z0-9]{10}"
)


def has_secret_name(name: str) -> bool:
    """Whether a file of that relative path looks like a secret."""
    path = PurePath(name.lower())
    if path.name.endswith(EXAMPLES):
        return False
    if any(fnmatchcase(path.name, pattern) for pattern in NAMES):
        return True
    return any(part in FOLDERS for part in path.parts[:-1]) or str(path).endswith(ENDS)


def holds_key(content: bytes) -> bool:
    """Whether there is a private key in it."""
    return any(mark in content for mark in MARKS) and KEYS.search(content) is not None
