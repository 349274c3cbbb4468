"""The webhook's certificate and its authority, which the API server trusts.

Both are created here, and renewed early.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from csi.errors import DataCacheError

_AUTHORITY_LIFETIME_DAYS, _CERTIFICATE_LIFETIME_DAYS = 3650, 90
# A certificate with less than this share of its lifetime left is renewed.
_RENEWAL_SHARE = 1 / 3
# Clocks of a cluster's machines differ.
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class Certificates:
    """Certificates and keys in PEM.

    `ca_bundle` ends with the current authority; the one before it may still be in use.

    `authority_key` belongs to the current authority and signs the next certificate.
    """

    ca_bundle: str
    authority_key: str = field(repr=False)
    certificate: str
    key: str = field(repr=False)


def renew_certificates(names: list[str], now: datetime, old: Certificates | None = None) -> Certificates:
    """Return certificates for a server with these DNS names, reusing `old` where still fresh.

    An expiring certificate is issued again by the old authority if that is fresh, else by a new one.
    """
    authority = _load_authority(old, now)
    if (
        old
        and authority
        and _is_fresh(old.certificate, now)
        and set(names) <= _read_dns_names(old.certificate)
    ):
        return old
    if old and authority:
        certificate, key = _issue_certificate(names, now, *authority)
        return Certificates(old.ca_bundle, old.authority_key, certificate, key)
    new_authority, new_authority_key = _create_authority(now)
    certificate, key = _issue_certificate(names, now, new_authority, new_authority_key)
    # Clients may see the old certificate a while longer, so its authority stays trusted.
    previous = _last_certificate(old.ca_bundle) if old else ""
    return Certificates(
        previous + _encode_certificate(new_authority), _encode_key(new_authority_key), certificate, key
    )


def _load_authority(
    old: Certificates | None, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    if old is None or not _is_fresh(_last_certificate(old.ca_bundle), now):
        return None
    key = serialization.load_pem_private_key(old.authority_key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DataCacheError(
            "the webhook's authority has a key of another kind; "
            "delete the Secret of its certificates, and new ones are created"
        )
    return _parse_certificate(_last_certificate(old.ca_bundle)), key


def _create_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, name = ec.generate_private_key(ec.SECP256R1()), _common_name("datacache-operator webhook authority")
    builder = (
        _certificate_builder(name, name, key.public_key(), now, _AUTHORITY_LIFETIME_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Strict clients (Python 3.13's default) reject an authority without keyCertSign (RFC 5280, 4.2.1.3
        # and
        # 4.2.1.9).
        .add_extension(_usage(signs=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def _issue_certificate(
    names: list[str], now: datetime, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey
) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _certificate_builder(
            _common_name(names[0][:64]), authority.subject, key.public_key(), now, _CERTIFICATE_LIFETIME_DAYS
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
    )
    return _encode_certificate(builder.sign(authority_key, hashes.SHA256())), _encode_key(key)


def _certificate_builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
    )
    builder = builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(signs: bool) -> x509.KeyUsage:
    """Return the key usage of an authority, or of a server."""
    others = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **dict.fromkeys(others, False))


def _is_fresh(certificate: str, now: datetime) -> bool:
    parsed = _parse_certificate(certificate)
    begins, ends = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    return begins <= now < ends - _RENEWAL_SHARE * (ends - begins)


def _read_dns_names(certificate: str) -> set[str]:
    extension = _parse_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return set(extension.value.get_values_for_type(x509.DNSName))


def _parse_certificate(certificate: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise DataCacheError(
            "the webhook's certificates are damaged; delete their Secret, and new ones are created"
        ) from error


def _last_certificate(bundle: str) -> str:
    """Return the last of several concatenated certificates."""
    end = "-----END CERTIFICATE-----\n"
    return end.join(bundle.split(end)[-2:])


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _encode_certificate(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _encode_key(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def utc_now() -> datetime:
    """Return the current time, aware of its zone."""
    return datetime.now(UTC)
