"""Settings of the payload store, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class ClaimSettings(BaseSettings):
    """The address of the payload store. Readers read only from the buckets that are named here."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_",
        populate_by_name=True,
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path(".fulgurite/data")
    """Folder for data on disk. Its folder `claims` holds texts too large for a message, unless
    FULGURITE_CLAIMS_URL is set. Whoever reads calls must see it under the same path."""
    claims_url: str = ""
    """Another place for large texts: `file:///shared/claims` or `s3://bucket/claims`.
    Credentials are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL."""
    claims_former_urls: str = ""
    """Buckets used before, comma-separated. Readers look there and in FULGURITE_CLAIMS_URL, and
    in no other."""

    def buckets(self) -> tuple[str, ...]:
        """Prefixes of the URIs of payloads in these buckets."""
        return tuple(
            f"{url.strip().rstrip('/')}/"
            for url in (self.claims_url, *self.claims_former_urls.split(","))
            if url.strip()
        )
