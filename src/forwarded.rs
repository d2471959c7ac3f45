//! `X-Forwarded-For` and RFC 7239 `Forwarded` lists, walked from the right.
