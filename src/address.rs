//! Address forms in, canonical text out (RFC 5952); blocks of addresses.
