"""The webhook's certificate, and the authority that the API server trusts for it: made here, renewed long before they end."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from csi.errors import DataCacheError

_AUTHORITY_LIFETIME_DAYS, _CERTIFICATE_LIFETIME_DAYS = 3650, 90
# One that has less than this part of its life left is renewed.
_RENEWAL_SHARE = 1 / 3
# Clocks of a cluster differ.
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class Certificates:
    """All in PEM. `ca_bundle` is the authority, before it the one that came earlier and may still be in use; its key signs the next certificate."""

    ca_bundle: str
    authority_key: str = field(repr=False)
    certificate: str
    key: str = field(repr=False)


def renew_certificates(names: list[str], now: datetime, old: Certificates | None = None) -> Certificates:
    """Certificates for a server of these DNS names: the old ones where they last, else renewed, by the old authority where that lasts."""
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
    made, made_key = _create_authority(now)
    certificate, key = _issue_certificate(names, now, made, made_key)
    earlier = _last_certificate(old.ca_bundle) if old else ""
    return Certificates(earlier + _encode_certificate(made), _encode_key(made_key), certificate, key)


def _load_authority(
    old: Certificates | None, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    if old is None or not _is_fresh(_last_certificate(old.ca_bundle), now):
        return None
    key = serialization.load_pem_private_key(old.authority_key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DataCacheError(
            "the webhook's authority has a key of another kind; delete the Secret of its certificates, and new ones are made"
        )
    return _parse_certificate(_last_certificate(old.ca_bundle)), key


def _create_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, name = ec.generate_private_key(ec.SECP256R1()), _common_name("datacache-operator webhook authority")
    builder = (
        _certificate_builder(name, name, key.public_key(), now, _AUTHORITY_LIFETIME_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Strict clients (Python 3.13's default) believe no authority that does not say that it signs (RFC 5280, 4.2.1.3 and 4.2.1.9).
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
    """Of a key that signs certificates, or of one that a server has."""
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
            "the webhook's certificates are damaged; delete their Secret, and new ones are made"
        ) from error


def _last_certificate(trusted: str) -> str:
    """The last of several certificates."""
    end = "-----END CERTIFICATE-----\n"
    return end.join(trusted.split(end)[-2:])


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _encode_certificate(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _encode_key(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def utc_now() -> datetime:
    """Now, as certificates tell time."""
    return datetime.now(UTC)
