# SPDX-License-Identifier: Apache-2.0
"""Certificates for servers and clients, and TLS contexts made of them."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def server_context(certificates: Path, *, requires_client_certificate: bool = False) -> ssl.SSLContext:
    """Return the context of a server whose certificate the fixture's authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    if requires_client_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(certificates / "authority.crt")
    return context


def strict_client_context(certificates: Path) -> ssl.SSLContext:
    """Return the context of a client that checks certificates as those of Python 3.13 do, on any Python."""
    context = ssl.create_default_context(cafile=certificates / "authority.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(certificates / "client.pem")
    return context


def make_certificates(folder: Path) -> Path:
    """Write the certificates of a new authority, and of a server and a client, into a folder; return that."""

    def _make(name: str, issuer: tuple[Any, Any] | None) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, issuer)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_bytes(pem + secret)
        (folder / f"{name}.crt").write_bytes(pem)
        (folder / f"{name}.key").write_bytes(secret)
        return certificate, key

    authority = _make("authority", None)
    _make("server", authority)
    _make("client", authority)
    return folder


def _certificate(name: str, key: Any, issuer: tuple[Any, Any] | None) -> x509.Certificate:
    """Make a certificate with all that VERIFY_X509_STRICT demands, which Python 3.13 turns on."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signing_key = issuer or (None, key)
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    of_signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(_key_usage(of_authority=issuer is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(of_signer, critical=False)
        .sign(signing_key, hashes.SHA256())
    )


def _key_usage(*, of_authority: bool) -> x509.KeyUsage:
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*unused, "crl_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not of_authority, key_cert_sign=of_authority, **never)
